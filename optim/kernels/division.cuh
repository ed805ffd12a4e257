#pragma once

#include <cuda_runtime.h>

#include <cstdint>

// Quotients and roots with the bits of x / y and sqrt(x), without the branches that cases at the
// ends of the exponents' range cost each of them: who calls excludes these for many at once.
namespace narrowgauge::optim::kernels {

// Out of line: what is seldom needed stays out of the instruction cache.
__device__ __noinline__ float divide(float x, float y) { return __fdiv_rn(x, y); }

struct Divisor {
  float value;
  float reciprocal;  // to nearest
};

__device__ inline Divisor divisor_of(float y) { return {y, __frcp_rn(y)}; }

// Whether y, infinity and NaN excluded, lies in [2^-60, 2^60].
__device__ inline bool is_ordinary(float y) {
  const uint32_t exponent = __float_as_uint(y) >> 23;
  return exponent >= 67 && exponent <= 186;
}

// y ordinary; x 0 or of a magnitude in [2^-100, 2^60], else with an error of at most the last bit
// of a quotient below 2^-39. One correction of x * reciprocal by its remainder, which is without
// error, rounds correctly (Markstein 1990; as CUDA's own division does it). The remainder has the
// sign that keeps a negative zero.
__device__ inline float quotient(float x, const Divisor& y) {
  const float q = x * y.reciprocal;
  const float remainder = __fmaf_rn(q, y.value, -x);
  return __fmaf_rn(-remainder, y.reciprocal, q);
}

__device__ inline float quotient(float x, float y) {
  float approximate;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(approximate) : "f"(y));
  const float error = __fmaf_rn(-y, approximate, 1.0F);
  return quotient(x, {y, __fmaf_rn(approximate, error, approximate)});
}

// x in [2^-100, 2^100].
__device__ inline float square_root(float x) {
  float reciprocal;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(x));
  const float root = x * reciprocal;
  const float remainder = __fmaf_rn(-root, root, x);
  return __fmaf_rn(remainder, 0.5F * reciprocal, root);
}

}  // namespace narrowgauge::optim::kernels

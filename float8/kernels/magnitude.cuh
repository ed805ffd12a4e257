#pragma once

#include <cstdint>

#include "cuda/launch.cuh"

// Magnitudes are compared as the bits of |x|: that order is exact, any order of blocks gives the
// same result, and NaN stands above infinity.
namespace narrowgauge::float8::kernels {

__device__ inline uint32_t magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffffU; }

// What a warp found, into a number that others raise, too; its lanes agree on `bits`. An atomic
// operation on one address costs as much as reading kilobytes, and most find it high enough: look
// first. A value read too early is too low and costs only the operation.
__device__ inline void raise(uint32_t bits, float* amax) {
  auto* to = reinterpret_cast<unsigned*>(amax);
  if (threadIdx.x % cuda::kWarpSize == 0 && bits > __ldcg(to)) {
    atomicMax(to, bits);
  }
}

}  // namespace narrowgauge::float8::kernels

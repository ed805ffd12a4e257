#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "vectorize/bfloat16.h"
#include "vectorize/target_clones.h"

// Scalar functions without branches or calls, so that a loop over them vectorises. Polynomials and
// splits are Cephes' single-precision ones (Moshier); the errors given were measured against fp64.
namespace narrowgauge::nn::kernels {

using vectorize::from_float;
using vectorize::to_float;

// e^x within 1.01 ulp on [-87.3, 88.7]; below 0 (results under the smallest normal are flushed),
// above infinity, NaN stays NaN.
NG_INLINE float exp_f32(float x) {
  constexpr float kMax = 88.72283F;      // ln(largest float)
  constexpr float kMin = -87.33654F;     // ln(smallest normal)
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const float clamped = x > kMax ? kMax : (x < kMin ? kMin : x);
  const float n = (clamped * 1.44269504088896341F + kRound) - kRound;
  const float r = (clamped - n * 0.693359375F) + n * 2.12194440e-4F;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * (r * r) + r + 1.0F;
  // 2^n in two factors: n = 128 alone is not an exponent. NaN gives any integer here; p is NaN.
  const int32_t exponent = static_cast<int32_t>(n);
  const int32_t half = exponent >> 1;
  const float scaled = p * std::bit_cast<float>((half + 127) << 23) *
                       std::bit_cast<float>((exponent - half + 127) << 23);
  return x > kMax ? std::bit_cast<float>(0x7f800000) : (x < kMin ? 0.0F : scaled);
}

// ln x for normal x > 0, within 1 ulp.
NG_INLINE float log_f32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  // Mantissa in [sqrt(1/2), sqrt(2)): the offset moves its carry into the exponent.
  const uint32_t shifted = bits - 0x3f3504f3U;
  const float exponent = static_cast<float>(static_cast<int32_t>(shifted) >> 23);
  const float m = std::bit_cast<float>((shifted & 0x7fffffU) + 0x3f3504f3U) - 1.0F;
  float p = 7.0376836292e-2F;
  p = p * m - 1.1514610310e-1F;
  p = p * m + 1.1676998740e-1F;
  p = p * m - 1.2420140846e-1F;
  p = p * m + 1.4249322787e-1F;
  p = p * m - 1.6668057665e-1F;
  p = p * m + 2.0000714765e-1F;
  p = p * m - 2.4999993993e-1F;
  p = p * m + 3.3333331174e-1F;
  const float z = m * m;
  const float low = p * m * z - 2.12194440e-4F * exponent - 0.5F * z;
  return (m + low) + 0.693359375F * exponent;
}

struct CosSin {
  float cos;
  float sin;
};

// For |x| <= pi / 4, within 1 ulp.
NG_INLINE CosSin cos_sin_f32(float x) {
  const float z = x * x;
  const float sine =
      ((-1.9515295891e-4F * z + 8.3321608736e-3F) * z - 1.6666654611e-1F) * z * x + x;
  const float cosine =
      ((2.443315711809948e-5F * z - 1.388731625493765e-3F) * z + 4.166664568298827e-2F) * z * z -
      0.5F * z + 1.0F;
  return {cosine, sine};
}

// Reductions run over 32 lanes that are folded at the end: whole AVX-512 vectors for bf16 too (an
// OpenMP reduction stops at half of one), and the same order of additions from every clone.
inline constexpr int64_t kLanes = 32;

// Fold of term(0), ..., term(count - 1) with a combine that may be regrouped; `start` is its
// neutral element. Term and Combine must be NG_INLINE_LAMBDA.
template <typename Term, typename Combine>
NG_INLINE float fold(int64_t count, float start, const Term& term, const Combine& combine) {
  float lane[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) {
    lane[j] = start;
  }
  const int64_t body = count - count % kLanes;
  for (int64_t i = 0; i < body; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      lane[j] = combine(lane[j], term(i + j));
    }
  }
  for (int64_t i = body; i < count; ++i) {
    lane[i - body] = combine(lane[i - body], term(i));
  }
#pragma GCC unroll 5
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t j = 0; j < width; ++j) {
      lane[j] = combine(lane[j], lane[j + width]);
    }
  }
  return lane[0];
}

template <typename Term>
NG_INLINE float sum_of(int64_t count, const Term& term) {
  return fold(count, 0.0F, term, [](float a, float b) NG_INLINE_LAMBDA { return a + b; });
}

// NaN is passed over.
template <typename Term>
NG_INLINE float max_of(int64_t count, const Term& term) {
  return fold(count, -std::numeric_limits<float>::infinity(), term,
              [](float a, float b) NG_INLINE_LAMBDA { return b > a ? b : a; });
}

}  // namespace narrowgauge::nn::kernels

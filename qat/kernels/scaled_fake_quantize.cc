#include "qat/kernels/scaled_fake_quantize.h"

#include <bit>

#include "vectorize/bfloat16.h"
#include "vectorize/target_clones.h"

namespace narrowgauge::qat::kernels {
namespace {

using vectorize::from_float;
using vectorize::to_float;

constexpr float kE4m3Max = 448.0F;
constexpr float kE2m1Max = 6.0F;

NG_INLINE float clamped(float x, float bound) {
  const float above = x < -bound ? -bound : x;
  return above > bound ? bound : above;
}

// To the nearest integer, ties to even, for |x| < 2^22.
NG_INLINE float nearest(float x) {
  constexpr float kShift = 12582912.0F;  // 1.5 * 2^23
  return (x + kShift) - kShift;
}

// |x| <= 448: 3 bits behind the leading one, multiples of 2^-9 below 2^-6.
NG_INLINE float to_e4m3(float x) {
  constexpr float kSmallestNormal = 0.015625F;
  constexpr float kSubnormalShift = 24576.0F;  // 1.5 * 2^14: its last bit is 2^-9
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const float normal = std::bit_cast<float>((bits + 0x7ffffU + ((bits >> 20) & 1U)) & 0xfff00000U);
  const float magnitude = x < 0 ? -x : x;
  const float tiny = (magnitude + kSubnormalShift) - kSubnormalShift;
  return magnitude < kSmallestNormal ? __builtin_copysignf(tiny, x) : normal;
}

// |x| <= 6: steps of 0.5 below 2, of 1 below 4, of 2 above.
NG_INLINE float to_e2m1(float x) {
  const float magnitude = x < 0 ? -x : x;
  const float fine = 0.5F * nearest(2.0F * magnitude);
  const float middle = nearest(magnitude);
  const float coarse = 2.0F * nearest(0.5F * magnitude);
  const float value = magnitude < 2.0F ? fine : (magnitude < 4.0F ? middle : coarse);
  return __builtin_copysignf(value, x);
}

// Ties away from zero, for |x| < 2^22.
NG_INLINE float away_from_zero(float x) {
  const float magnitude = x < 0 ? -x : x;
  const float even = nearest(magnitude);
  const float value = magnitude - even == 0.5F ? even + 1.0F : even;
  return __builtin_copysignf(value, x) + 0.0F;  // an integer has no -0
}

// One rounding, as llama.cpp's compilers contract it.
NG_INLINE float q4_0_code(float x, float before) {
  const float sum = __builtin_fmaf(x, before, 8.5F);
  const float even = nearest(sum);
  const float whole = even > sum ? even - 1.0F : even;  // sum is at least 0.5
  return (whole > 15.0F ? 15.0F : whole) - 8.0F;
}

template <ScaledRounding rounding>
NG_INLINE float round_to_grid(float x, float before) {
  switch (rounding) {
    case ScaledRounding::kE4m3Divided:
      return to_e4m3(clamped(x / before, kE4m3Max));
    case ScaledRounding::kE4m3Multiplied:
      return to_e4m3(clamped(x * before, kE4m3Max));
    case ScaledRounding::kE2m1Multiplied:
      return to_e2m1(clamped(x * before, kE2m1Max));
    case ScaledRounding::kQ8_0:
      return clamped(away_from_zero(clamped(x * before, 1024.0F)), 127.0F);
    case ScaledRounding::kQ4_0:
      return q4_0_code(x, before);
  }
}

template <ScaledRounding rounding, typename T>
NG_INLINE void groups_of(const T* __restrict x, int64_t num_groups, int64_t group,
                         const float* before, const float* after, T* __restrict y) {
  for (int64_t g = 0; g < num_groups; ++g) {
    const float factor = before[g];
    const float scale = after[g];
    const T* __restrict from = x + g * group;
    T* __restrict to = y + g * group;
    for (int64_t i = 0; i < group; ++i) {
      to[i] = from_float<T>(round_to_grid<rounding>(to_float(from[i]), factor) * scale);
    }
  }
}

template <typename T>
NG_INLINE void all_groups(const T* x, int64_t num_groups, int64_t group, ScaledRounding rounding,
                          const float* before, const float* after, T* y) {
  using R = ScaledRounding;
  switch (rounding) {
    case R::kE4m3Divided:
      return groups_of<R::kE4m3Divided>(x, num_groups, group, before, after, y);
    case R::kE4m3Multiplied:
      return groups_of<R::kE4m3Multiplied>(x, num_groups, group, before, after, y);
    case R::kE2m1Multiplied:
      return groups_of<R::kE2m1Multiplied>(x, num_groups, group, before, after, y);
    case R::kQ8_0:
      return groups_of<R::kQ8_0>(x, num_groups, group, before, after, y);
    case R::kQ4_0:
      return groups_of<R::kQ4_0>(x, num_groups, group, before, after, y);
  }
}

// An order of magnitudes, NaN above infinity.
NG_INLINE uint16_t magnitude(uint16_t x) { return x & 0x7fffU; }
NG_INLINE uint32_t magnitude(float x) { return std::bit_cast<uint32_t>(x) & 0x7fffffffU; }

template <typename T>
NG_INLINE void signed_amax_of(const T* x, int64_t num_groups, int64_t group, float* largest) {
  for (int64_t g = 0; g < num_groups; ++g) {
    const T* from = x + g * group;
    auto most = magnitude(T{});
    for (int64_t i = 0; i < group; ++i) {
      const auto m = magnitude(from[i]);
      most = m > most ? m : most;
    }
    int64_t first = 0;
    while (first + 1 < group && magnitude(from[first]) != most) {
      ++first;
    }
    largest[g] = group == 0 ? 0.0F : to_float(from[first]);
  }
}

}  // namespace

NG_TARGET_CLONES void signed_amax(const float* x, int64_t num_groups, int64_t group,
                                  float* largest) {
  signed_amax_of(x, num_groups, group, largest);
}

NG_TARGET_CLONES void signed_amax(const uint16_t* x, int64_t num_groups, int64_t group,
                                  float* largest) {
  signed_amax_of(x, num_groups, group, largest);
}

NG_TARGET_CLONES void fake_quantize_scaled(const float* x, int64_t num_groups, int64_t group,
                                           ScaledRounding rounding, const float* before,
                                           const float* after, float* y) {
  all_groups(x, num_groups, group, rounding, before, after, y);
}

NG_TARGET_CLONES void fake_quantize_scaled(const uint16_t* x, int64_t num_groups, int64_t group,
                                           ScaledRounding rounding, const float* before,
                                           const float* after, uint16_t* y) {
  all_groups(x, num_groups, group, rounding, before, after, y);
}

}  // namespace narrowgauge::qat::kernels

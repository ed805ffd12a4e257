#include "float8/kernels/scale.h"

#include <bit>
#include <cmath>

#include "vectorize/target_clones.h"

namespace narrowgauge::float8::kernels {
namespace {

constexpr double kEps = 1e-12;
constexpr uint32_t kMantissa = 0x7fffff;
constexpr uint32_t kInfinity = 0x7f800000;
constexpr uint32_t kSmallestNormal = 0x00800000;
// The fp32 logarithm of a value this close to a power of two may be an integer (44 units at the
// largest exponents): such values take the careful way.
constexpr uint32_t kNear = 256;

double largest(Float8Format format) { return format == Float8Format::kE4M3 ? 448.0 : 57344.0; }

float log2_f32(float x) { return static_cast<float>(std::log2(static_cast<double>(x))); }

NG_INLINE bool is_finite_normal(uint32_t bits) {
  return bits >= kSmallestNormal && bits < kInfinity;
}

NG_INLINE bool rounds_down_plainly(uint32_t bits) {
  return is_finite_normal(bits) && (bits & kMantissa) < kMantissa + 1 - kNear;
}

NG_INLINE bool rounds_up_plainly(uint32_t bits) {
  const uint32_t mantissa = bits & kMantissa;
  return is_finite_normal(bits) && (mantissa == 0 || mantissa > kNear);
}

// 2^(127 - code); the last two are subnormal.
NG_INLINE float power(uint32_t code) {
  return std::bit_cast<float>(code < 254 ? (254 - code) << 23 : 0x00400000U >> (code - 254));
}

uint8_t careful_rceil(float descale) {
  if (std::isnan(descale)) {
    return 255;
  }
  return static_cast<uint8_t>(std::fmin(std::fmax(std::ceil(log2_f32(descale)), -127.0F), 127.0F) +
                              127.0F);
}

}  // namespace

NG_TARGET_CLONES
void amax_to_scale(const float* amax, int64_t count, Float8Format format, bool power_of_2,
                   float* scale, float* inverse_scale) {
  const double max = largest(format);
  for (int64_t i = 0; i < count; ++i) {
    const double wide = amax[i];
    scale[i] = static_cast<float>(max / (wide < kEps ? kEps : wide));
  }
  if (power_of_2) {
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t bits = std::bit_cast<uint32_t>(scale[i]);
      scale[i] = rounds_down_plainly(bits) ? std::bit_cast<float>(bits & kInfinity)
                                           : std::exp2(std::floor(log2_f32(scale[i])));
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    inverse_scale[i] = 1.0F / scale[i];
  }
}

void amax_to_e8m0(const float* amax, int64_t count, Float8Format format, bool rceil, uint8_t* e8m0,
                  float* scale) {
  const bool is_e4m3 = format == Float8Format::kE4M3;
  const auto max = static_cast<float>(largest(format));
  const int32_t exponent_of_max = is_e4m3 ? 8 : 15;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(amax[i]);
    if (rceil) {
      const float descale = amax[i] / max;
      const uint32_t up = std::bit_cast<uint32_t>(descale);
      e8m0[i] = rounds_up_plainly(up)
                    ? static_cast<uint8_t>((up >> 23) + ((up & kMantissa) != 0 ? 1 : 0))
                    : careful_rceil(descale);
      scale[i] = e8m0[i] == 0 ? 1.0F : power(e8m0[i]);
    } else {
      const int32_t biased = static_cast<int32_t>(bits >> 23) - exponent_of_max;
      e8m0[i] = bits > kInfinity ? 255 : static_cast<uint8_t>(biased < 0 ? 0 : biased);
      scale[i] = e8m0[i] == 255 ? 0.0F : power(e8m0[i] == 0 ? 1 : e8m0[i]);
    }
  }
}

}  // namespace narrowgauge::float8::kernels

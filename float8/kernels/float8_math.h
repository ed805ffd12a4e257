#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "nn/kernels/vector_math.h"
#include "vectorize/target_clones.h"

// One value to an 8-bit float and back, without branches, so that loops over them vectorise.
namespace narrowgauge::float8::kernels {

enum class Float8Format { kE4M3, kE5M2 };

// Layout of a format beside fp32's 8 exponent and 23 mantissa bits.
template <Float8Format format>
struct Float8Layout {
  static constexpr bool kIsE4M3 = format == Float8Format::kE4M3;
  static constexpr int kMantissaBits = kIsE4M3 ? 3 : 2;
  static constexpr int kBias = kIsE4M3 ? 7 : 15;
  static constexpr float kMax = kIsE4M3 ? 448.0F : 57344.0F;
  static constexpr uint32_t kMaxCode = kIsE4M3 ? 0x7e : 0x7b;
  static constexpr uint32_t kNan = 0x7f;  // torch's, of either format
  static constexpr int kShift = 23 - kMantissaBits;
};

// x clamped to [-kMax, kMax] and rounded to nearest even; NaN gives kNan with x's sign. Bit-equal
// to torch's clamp and cast.
template <Float8Format format>
NG_INLINE uint8_t encode(float x) {
  using Layout = Float8Layout<format>;
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 24) & 0x80U;
  const uint32_t magnitude = bits & 0x7fffffffU;
  // Normal results: drop mantissa bits, rounding to even; a carry moves into the exponent.
  constexpr uint32_t kRebias = static_cast<uint32_t>(127 - Layout::kBias) << 23;
  constexpr uint32_t kHalfLess = (1U << (Layout::kShift - 1)) - 1;
  const uint32_t odd = (magnitude >> Layout::kShift) & 1U;
  const uint32_t normal = (magnitude - kRebias + kHalfLess + odd) >> Layout::kShift;
  // Subnormal results: adding a power of two whose last bit is the format's smallest value leaves
  // the rounded code in the low bits. It also carries into the first normal number.
  constexpr int kUnitExponent = 1 - Layout::kBias - Layout::kMantissaBits;
  constexpr float kAligner =
      std::bit_cast<float>(static_cast<uint32_t>(kUnitExponent + 23 + 127) << 23);
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + kAligner) -
                             std::bit_cast<uint32_t>(kAligner);
  constexpr uint32_t kSmallestNormal = static_cast<uint32_t>(1 - Layout::kBias + 127) << 23;
  constexpr uint32_t kLargest = std::bit_cast<uint32_t>(Layout::kMax);
  uint32_t code = magnitude < kSmallestNormal ? subnormal : normal;
  code = magnitude >= kLargest ? Layout::kMaxCode : code;
  code = magnitude > 0x7f800000U ? Layout::kNan : code;
  return static_cast<uint8_t>(code | sign);
}

// Exact. NaN keeps its sign and is quiet.
template <Float8Format format>
NG_INLINE float decode(uint8_t code) {
  using Layout = Float8Layout<format>;
  const uint32_t magnitude = code & 0x7fU;
  const uint32_t sign = static_cast<uint32_t>(code & 0x80U) << 24;
  constexpr uint32_t kRebias = static_cast<uint32_t>(127 - Layout::kBias) << 23;
  constexpr uint32_t kFirstNormal = 1U << Layout::kMantissaBits;
  const uint32_t shifted = magnitude << Layout::kShift;
  const uint32_t normal = shifted + kRebias;
  // Read a subnormal as if it had the implicit one of the smallest normal, and take that away.
  constexpr uint32_t kSmallestNormal = static_cast<uint32_t>(1 - Layout::kBias + 127) << 23;
  const uint32_t subnormal = std::bit_cast<uint32_t>(
      std::bit_cast<float>(shifted + kSmallestNormal) - std::bit_cast<float>(kSmallestNormal));
  uint32_t bits = magnitude < kFirstNormal ? subnormal : normal;
  if constexpr (Layout::kIsE4M3) {
    bits = magnitude == 0x7fU ? 0x7fc00000U : bits;
  } else {
    bits = magnitude > 0x7cU ? 0x7fc00000U : (magnitude == 0x7cU ? 0x7f800000U : bits);
  }
  return std::bit_cast<float>(bits | sign);
}

// The upper half of the fp32 that decode gives: the same value, as a bf16.
template <Float8Format format>
NG_INLINE uint16_t decode_bf16(uint8_t code) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(decode<format>(code)) >> 16);
}

// Calls body with std::integral_constant<Float8Format, format>.
template <typename Body>
NG_INLINE void with_format(Float8Format format, const Body& body) {
  if (format == Float8Format::kE4M3) {
    body(std::integral_constant<Float8Format, Float8Format::kE4M3>{});
  } else {
    body(std::integral_constant<Float8Format, Float8Format::kE5M2>{});
  }
}

}  // namespace narrowgauge::float8::kernels

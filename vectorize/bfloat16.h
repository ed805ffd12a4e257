#pragma once

#include <bit>
#include <cstdint>

#include "vectorize/target_clones.h"

namespace narrowgauge::vectorize {

// A bf16 is the upper half of an fp32 and travels as uint16_t.
NG_INLINE float to_float(uint16_t x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x) << 16);
}
NG_INLINE float to_float(float x) { return x; }

template <typename T>
T from_float(float x);

// Round to nearest even; overflow gives infinity, NaN stays NaN (quiet, payload cut).
template <>
NG_INLINE uint16_t from_float<uint16_t>(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40U;
  return static_cast<uint16_t>((bits & 0x7fffffffU) > 0x7f800000U ? quiet : rounded);
}

template <>
NG_INLINE float from_float<float>(float x) {
  return x;
}

// Rounds away from zero with probability (lower 16 bits) / 2^16, for random16 uniform in [0, 2^16):
// the expected value is x. Infinity and NaN stay what they are (NaN quiet, payload cut).
NG_INLINE uint16_t from_float_stochastic(float x, uint32_t random16) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t quiet = (bits >> 16) | 0x40U;
  return static_cast<uint16_t>((bits & 0x7fffffffU) > 0x7f800000U ? quiet
                                                                  : (bits + random16) >> 16);
}

}  // namespace narrowgauge::vectorize

#pragma once

#include <cstdint>

namespace narrowgauge::data {

// The finalizer of SplitMix64 (Steele, Lea, Flood 2014) after one golden-ratio step: a bijection of
// 64 bits in which every input bit reaches every output bit. The order of the data is defined by
// it, so it must never change.
constexpr uint64_t mix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

constexpr uint64_t mix64(uint64_t a, uint64_t b) { return mix64(mix64(a) ^ b); }

// `bits`, uniform in 64 bits, as an integer in [0, bound) (Lemire 2019 without the rejection step;
// the bias is below bound / 2^64).
constexpr uint64_t scale_to(uint64_t bits, uint64_t bound) {
  __extension__ using uint128_t = unsigned __int128;
  return static_cast<uint64_t>((uint128_t{bits} * bound) >> 64);
}

}  // namespace narrowgauge::data

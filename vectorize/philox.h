#pragma once

#include <cstdint>
#include <string_view>

#include "vectorize/target_clones.h"

// Kernels of both kinds share the generator.
#if defined(__CUDACC__)
#define NG_HOST_DEVICE_INLINE __host__ __device__ inline
#else
#define NG_HOST_DEVICE_INLINE NG_INLINE
#endif

namespace narrowgauge::vectorize {

struct PhiloxWords {
  uint32_t word[4];
};

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011), constants of the paper: 4 random words that are
// a pure function of a 128-bit counter {low, high} and a key.
NG_HOST_DEVICE_INLINE PhiloxWords philox(uint64_t low, uint64_t high, uint64_t key) {
  uint32_t c0 = static_cast<uint32_t>(low);
  uint32_t c1 = static_cast<uint32_t>(low >> 32);
  uint32_t c2 = static_cast<uint32_t>(high);
  uint32_t c3 = static_cast<uint32_t>(high >> 32);
  uint32_t k0 = static_cast<uint32_t>(key);
  uint32_t k1 = static_cast<uint32_t>(key >> 32);
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(c0) * 0xD2511F53U;
    const uint64_t p1 = static_cast<uint64_t>(c2) * 0xCD9E8D57U;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9U;
    k1 += 0xBB67AE85U;
  }
  return {{c0, c1, c2, c3}};
}

// splitmix64's mixer: every bit of the result depends on every bit of x.
constexpr uint64_t mix_bits(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// The key of a parameter's stream: FNV-1a of its name, mixed, so that names that differ in one
// letter share no bits.
constexpr uint64_t stream_key(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325ULL;
  for (const char c : name) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  }
  return mix_bits(hash);
}

}  // namespace narrowgauge::vectorize

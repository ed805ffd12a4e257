#include "sparsity/kernels/semi_structured.h"

#include <array>
#include <bit>

#include "vectorize/target_clones.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// One of the few files with intrinsics: GCC does not find VPCOMPRESSW and VPEXPANDW from a loop,
// which are the packed form's two directions in one instruction a 32 elements.
namespace narrowgauge::sparsity::kernels {
namespace {

// Half bytes with at most two bits, filled up to two with the lowest that are free.
constexpr std::array<uint8_t, 16> make_completed() {
  std::array<uint8_t, 16> table{};
  for (unsigned half = 0; half < 16; ++half) {
    unsigned completed = half;
    for (unsigned bit = 1; bit < 16 && std::popcount(completed) < 2; bit *= 2) {
      completed |= bit;
    }
    table[half] = static_cast<uint8_t>(completed);
  }
  return table;
}

constexpr std::array<uint8_t, 16> kCompleted = make_completed();

NG_INLINE bool keeps_two_of_four(const uint8_t* mask, int64_t num_bytes) {
  // Per half byte: the sum of its bits is at most two.
  uint32_t excess = 0;
  for (int64_t i = 0; i < num_bytes; ++i) {
    const uint32_t pairs = (mask[i] & 0x55U) + (mask[i] >> 1 & 0x55U);
    const uint32_t fours = (pairs & 0x33U) + (pairs >> 2 & 0x33U);
    excess |= (fours + 0x11U) & 0x44U;
  }
  return excess == 0;
}

NG_INLINE void complete(const uint8_t* mask, uint8_t* metadata, int64_t num_bytes) {
  for (int64_t i = 0; i < num_bytes; ++i) {
    metadata[i] = static_cast<uint8_t>(kCompleted[mask[i] & 15U] | kCompleted[mask[i] >> 4] << 4);
  }
}

template <typename T>
void apply_mask_portable(const T* weight, const uint8_t* mask, T* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; ++i) {
    out[i] = (mask[i / 8] >> i % 8 & 1) != 0 ? weight[i] : T{0};
  }
}

template <typename T>
void compress_portable(const T* weight, const uint8_t* mask, const uint8_t* metadata, T* values,
                       int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; ++i) {
    if ((metadata[i / 8] >> i % 8 & 1) != 0) {
      *values++ = (mask[i / 8] >> i % 8 & 1) != 0 ? weight[i] : T{0};
    }
  }
}

template <typename T>
void decompress_portable(const T* values, const uint8_t* metadata, T* out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; ++i) {
    out[i] = (metadata[i / 8] >> i % 8 & 1) != 0 ? *values++ : T{0};
  }
}

#if defined(__x86_64__)

bool has_compress() {
  return __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vl");
}

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,bmi2,popcnt")

NG_INLINE uint32_t load_bits(const uint8_t* bits) {
  uint32_t word;
  __builtin_memcpy(&word, bits, sizeof word);
  return word;
}

void apply_mask_512(const uint16_t* weight, const uint8_t* mask, uint16_t* out,
                    int64_t num_elements) {
  int64_t i = 0;
  for (; i + 32 <= num_elements; i += 32) {
    _mm512_storeu_si512(out + i, _mm512_maskz_loadu_epi16(load_bits(mask + i / 8), weight + i));
  }
  apply_mask_portable(weight + i, mask + i / 8, out + i, num_elements - i);
}

void compress_512(const uint16_t* weight, const uint8_t* mask, const uint8_t* metadata,
                  uint16_t* values, int64_t num_elements) {
  int64_t i = 0;
  for (; i + 32 <= num_elements; i += 32) {
    const __m512i kept = _mm512_maskz_loadu_epi16(load_bits(mask + i / 8), weight + i);
    const __m512i packed = _mm512_maskz_compress_epi16(load_bits(metadata + i / 8), kept);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + i / 2), _mm512_castsi512_si256(packed));
  }
  compress_portable(weight + i, mask + i / 8, metadata + i / 8, values + i / 2, num_elements - i);
}

void decompress_512(const uint16_t* values, const uint8_t* metadata, uint16_t* out,
                    int64_t num_elements) {
  int64_t i = 0;
  for (; i + 32 <= num_elements; i += 32) {
    const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i / 2));
    _mm512_storeu_si512(out + i, _mm512_maskz_expand_epi16(load_bits(metadata + i / 8),
                                                           _mm512_castsi256_si512(packed)));
  }
  decompress_portable(values + i / 2, metadata + i / 8, out + i, num_elements - i);
}

#pragma GCC pop_options

#else

bool has_compress() { return false; }

#endif

}  // namespace

void apply_mask(const float* weight, const uint8_t* mask, float* out, int64_t num_elements) {
  apply_mask_portable(weight, mask, out, num_elements);
}

void apply_mask(const uint16_t* weight, const uint8_t* mask, uint16_t* out, int64_t num_elements) {
#if defined(__x86_64__)
  if (has_compress()) {
    apply_mask_512(weight, mask, out, num_elements);
    return;
  }
#endif
  apply_mask_portable(weight, mask, out, num_elements);
}

bool compress(const float* weight, const uint8_t* mask, float* values, uint8_t* metadata,
              int64_t num_elements) {
  if (!keeps_two_of_four(mask, num_elements / 8)) {
    return false;
  }
  complete(mask, metadata, num_elements / 8);
  compress_portable(weight, mask, metadata, values, num_elements);
  return true;
}

bool compress(const uint16_t* weight, const uint8_t* mask, uint16_t* values, uint8_t* metadata,
              int64_t num_elements) {
  if (!keeps_two_of_four(mask, num_elements / 8)) {
    return false;
  }
  complete(mask, metadata, num_elements / 8);
#if defined(__x86_64__)
  if (has_compress()) {
    compress_512(weight, mask, metadata, values, num_elements);
    return true;
  }
#endif
  compress_portable(weight, mask, metadata, values, num_elements);
  return true;
}

void decompress(const float* values, const uint8_t* metadata, float* out, int64_t num_elements) {
  decompress_portable(values, metadata, out, num_elements);
}

void decompress(const uint16_t* values, const uint8_t* metadata, uint16_t* out,
                int64_t num_elements) {
#if defined(__x86_64__)
  if (has_compress()) {
    decompress_512(values, metadata, out, num_elements);
    return;
  }
#endif
  decompress_portable(values, metadata, out, num_elements);
}

}  // namespace narrowgauge::sparsity::kernels

#include "sparsity/kernels/semi_structured.h"

#include <algorithm>
#include <cstring>

#include "vectorize/target_clones.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// One of the few files with intrinsics: GCC does not find VPCOMPRESSW and VPEXPANDW from a loop,
// which are the packed form's two directions in one instruction a 32 elements.
namespace narrowgauge::sparsity::kernels {
namespace {

constexpr uint64_t kLowBits = 0x1111111111111111U;  // of each half byte

// Not 0 if a half byte of `mask` has more than two bits.
NG_INLINE uint64_t excess_of(uint64_t mask) {
  const uint64_t pairs = (mask & 5 * kLowBits) + (mask >> 1 & 5 * kLowBits);
  const uint64_t bits = (pairs & 3 * kLowBits) + (pairs >> 2 & 3 * kLowBits);
  return (bits + kLowBits) & 4 * kLowBits;
}

// Half bytes of at most two bits, filled up to two with the lowest that are free.
NG_INLINE uint64_t completed(uint64_t mask) {
  const uint64_t pairs = (mask & 5 * kLowBits) + (mask >> 1 & 5 * kLowBits);
  const uint64_t bits = (pairs & 3 * kLowBits) + (pairs >> 2 & 3 * kLowBits);
  const uint64_t one = mask | (~(bits >> 1) & kLowBits);  // the lowest, where there were 0 or 1
  const uint64_t alone = one & ~(one >> 1) & ~(one >> 2) & ~(one >> 3) & kLowBits;
  return one | alone << 1;
}

// Metadata of `mask`, or false if it keeps more than two of four anywhere.
NG_INLINE bool complete(const uint8_t* mask, uint8_t* metadata, int64_t num_bytes) {
  uint64_t excess = 0;
  for (int64_t i = 0; i < num_bytes; i += 8) {
    const auto count = static_cast<size_t>(std::min<int64_t>(8, num_bytes - i));
    uint64_t word = 0;
    std::memcpy(&word, mask + i, count);
    excess |= excess_of(word);
    word = completed(word);
    std::memcpy(metadata + i, &word, count);
  }
  return excess == 0;
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

constexpr int64_t kAhead = 2048;  // bytes

// Also completes the mask, eight bytes at a time. Returns false where it keeps too many.
bool compress_512(const uint16_t* weight, const uint8_t* mask, uint16_t* values, uint8_t* metadata,
                  int64_t num_elements) {
  const auto pack_32 = [&](int64_t i, uint32_t kept, uint32_t bits) NG_INLINE_LAMBDA {
    const __m512i packed =
        _mm512_maskz_compress_epi16(bits, _mm512_maskz_loadu_epi16(kept, weight + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + i / 2), _mm512_castsi512_si256(packed));
  };
  uint64_t excess = 0;
  int64_t i = 0;
  for (; i + 64 <= num_elements; i += 64) {
    uint64_t kept;
    std::memcpy(&kept, mask + i / 8, sizeof kept);
    excess |= excess_of(kept);
    const uint64_t bits = completed(kept);
    std::memcpy(metadata + i / 8, &bits, sizeof bits);
    _mm_prefetch(reinterpret_cast<const char*>(weight + i) + kAhead, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(weight + i + 32) + kAhead, _MM_HINT_T0);
    __builtin_prefetch(reinterpret_cast<const char*>(values + i / 2) + kAhead, /*write=*/1);
    pack_32(i, static_cast<uint32_t>(kept), static_cast<uint32_t>(bits));
    pack_32(i + 32, static_cast<uint32_t>(kept >> 32), static_cast<uint32_t>(bits >> 32));
  }
  if (excess != 0 || !complete(mask + i / 8, metadata + i / 8, (num_elements - i) / 8)) {
    return false;
  }
  compress_portable(weight + i, mask + i / 8, metadata + i / 8, values + i / 2, num_elements - i);
  return true;
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
  if (!complete(mask, metadata, num_elements / 8)) {
    return false;
  }
  compress_portable(weight, mask, metadata, values, num_elements);
  return true;
}

bool compress(const uint16_t* weight, const uint8_t* mask, uint16_t* values, uint8_t* metadata,
              int64_t num_elements) {
#if defined(__x86_64__)
  if (has_compress()) {
    return compress_512(weight, mask, values, metadata, num_elements);
  }
#endif
  if (!complete(mask, metadata, num_elements / 8)) {
    return false;
  }
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

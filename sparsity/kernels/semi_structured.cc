#include "sparsity/kernels/semi_structured.h"

#include <array>
#include <bit>

#include "vectorize/bfloat16.h"
#include "vectorize/target_clones.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// One of the few files with intrinsics: GCC does not find VPCOMPRESSW and VPEXPANDW from a loop,
// which are the packed form's two directions in one instruction a 32 elements.
namespace narrowgauge::sparsity::kernels {
namespace {

using vectorize::from_float;
using vectorize::to_float;

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

void matvec_portable(const uint16_t* values, const uint8_t* metadata, const uint16_t* x,
                     uint16_t* y, int64_t y_stride, int64_t batch, int64_t rows, int64_t cols) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t b = 0; b < batch; ++b) {
      const uint16_t* value = values + row * (cols / 2);
      float sum = 0;
      for (int64_t col = 0; col < cols; ++col) {
        if ((metadata[row * (cols / 8) + col / 8] >> col % 8 & 1) != 0) {
          sum += to_float(*value++) * to_float(x[b * cols + col]);
        }
      }
      y[b * y_stride + row] = from_float<uint16_t>(sum);
    }
  }
}

#if defined(__x86_64__)

bool has_expand() {
  return __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512bf16");
}

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,avx512bf16,bmi2,popcnt,fma")

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

// Columns [col, col + 32) of a packed row, expanded; what lies beyond cols is 0.
NG_INLINE __m512i expand_32(const uint16_t* values, const uint8_t* metadata, int64_t col,
                            int64_t cols) {
  if (col + 32 <= cols) {
    const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + col / 2));
    return _mm512_maskz_expand_epi16(load_bits(metadata + col / 8), _mm512_castsi256_si512(packed));
  }
  uint32_t bits = 0;
  __builtin_memcpy(&bits, metadata + col / 8, static_cast<size_t>((cols - col) / 8));
  const __m512i packed = _mm512_maskz_loadu_epi16((1U << (cols - col) / 2) - 1, values + col / 2);
  return _mm512_maskz_expand_epi16(bits, packed);
}

NG_INLINE __m512i load_32(const uint16_t* x, int64_t col, int64_t cols) {
  return col + 32 <= cols ? _mm512_loadu_si512(x + col)
                          : _mm512_maskz_loadu_epi16((1U << (cols - col)) - 1, x + col);
}

template <int num_x, int num_rows>
NG_INLINE void matvec_rows(const uint16_t* values, const uint8_t* metadata, const uint16_t* x,
                           uint16_t* y, int64_t y_stride, int64_t cols) {
  __m512 sums[num_rows][num_x];
  for (auto& row : sums) {
    for (__m512& sum : row) {
      sum = _mm512_setzero_ps();
    }
  }
  for (int64_t col = 0; col < cols; col += 32) {
    __m512i x_part[num_x];
    for (int b = 0; b < num_x; ++b) {
      x_part[b] = load_32(x + b * cols, col, cols);
    }
    for (int row = 0; row < num_rows; ++row) {
      const __m512i w =
          expand_32(values + row * (cols / 2), metadata + row * (cols / 8), col, cols);
      for (int b = 0; b < num_x; ++b) {
        sums[row][b] = _mm512_dpbf16_ps(sums[row][b], (__m512bh)w, (__m512bh)x_part[b]);
      }
    }
  }
  for (int row = 0; row < num_rows; ++row) {
    for (int b = 0; b < num_x; ++b) {
      y[b * y_stride + row] = from_float<uint16_t>(_mm512_reduce_add_ps(sums[row][b]));
    }
  }
}

template <int num_x>
void matvec_512(const uint16_t* values, const uint8_t* metadata, const uint16_t* x, uint16_t* y,
                int64_t y_stride, int64_t rows, int64_t cols) {
  constexpr int kRows = 4;  // streams of values that memory serves at a time
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) {
    matvec_rows<num_x, kRows>(values + row * (cols / 2), metadata + row * (cols / 8), x, y + row,
                              y_stride, cols);
  }
  for (; row < rows; ++row) {
    matvec_rows<num_x, 1>(values + row * (cols / 2), metadata + row * (cols / 8), x, y + row,
                          y_stride, cols);
  }
}

#pragma GCC pop_options

#else

bool has_expand() { return false; }

#endif

}  // namespace

void apply_mask(const float* weight, const uint8_t* mask, float* out, int64_t num_elements) {
  apply_mask_portable(weight, mask, out, num_elements);
}

void apply_mask(const uint16_t* weight, const uint8_t* mask, uint16_t* out, int64_t num_elements) {
#if defined(__x86_64__)
  if (has_expand()) {
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
  if (has_expand()) {
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
  if (has_expand()) {
    decompress_512(values, metadata, out, num_elements);
    return;
  }
#endif
  decompress_portable(values, metadata, out, num_elements);
}

void semi_structured_matvec(const uint16_t* values, const uint8_t* metadata, const uint16_t* x,
                            uint16_t* y, int64_t y_stride, int64_t batch, int64_t rows,
                            int64_t cols) {
#if defined(__x86_64__)
  if (has_expand()) {
    int64_t b = 0;
    for (; b + 4 <= batch; b += 4) {
      matvec_512<4>(values, metadata, x + b * cols, y + b * y_stride, y_stride, rows, cols);
    }
    for (; b < batch; ++b) {
      matvec_512<1>(values, metadata, x + b * cols, y + b * y_stride, y_stride, rows, cols);
    }
    return;
  }
#endif
  matvec_portable(values, metadata, x, y, y_stride, batch, rows, cols);
}

}  // namespace narrowgauge::sparsity::kernels

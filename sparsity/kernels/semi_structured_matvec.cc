#include "sparsity/kernels/semi_structured_matvec.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "vectorize/bfloat16.h"
#include "vectorize/target_clones.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// One of the few files with intrinsics: GCC finds neither VPEXPANDW nor a table of byte shuffles in
// a loop over bits.
namespace narrowgauge::sparsity::kernels {
namespace {

using vectorize::from_float;
using vectorize::to_float;

NG_INLINE void store(float sum, int64_t row, const uint16_t* bias, uint16_t* y) {
  y[row] = from_float<uint16_t>(bias == nullptr ? sum : sum + to_float(bias[row]));
}

#if defined(__x86_64__)

// What the vector kernels share: kStreams rows at a time, so that memory serves several streams,
// and as many tokens as are left of kMatvecTokens. Dot::rows is code for one kind of processor.
constexpr int kStreams = 4;

template <typename Dot, int num_tokens>
void multiply(const SemiStructuredRows& w, const uint16_t* x, const uint16_t* bias, uint16_t* y,
              int64_t y_stride) {
  int64_t row = 0;
  for (; row + kStreams <= w.rows; row += kStreams) {
    Dot::template rows<kStreams, num_tokens>(w, row, x, bias, y, y_stride);
  }
  for (; row < w.rows; ++row) {
    Dot::template rows<1, num_tokens>(w, row, x, bias, y, y_stride);
  }
}

template <typename Dot>
void multiply_tokens(const SemiStructuredRows& w, const uint16_t* x, int64_t num_tokens,
                     const uint16_t* bias, uint16_t* y, int64_t y_stride) {
  for (int64_t t = 0; t < num_tokens; t += kMatvecTokens) {
    const uint16_t* input = x + t * w.cols;
    uint16_t* output = y + t * y_stride;
    switch (std::min(num_tokens - t, kMatvecTokens)) {
      case 1:
        multiply<Dot, 1>(w, input, bias, output, y_stride);
        break;
      case 2:
        multiply<Dot, 2>(w, input, bias, output, y_stride);
        break;
      case 3:
        multiply<Dot, 3>(w, input, bias, output, y_stride);
        break;
      default:
        multiply<Dot, 4>(w, input, bias, output, y_stride);
    }
  }
}

// Where the two columns of each half byte of metadata lie: for each of its eight columns, as 32
// bits, the two bytes of its value among the four values at hand, above two zeros. That is its
// fp32.
using Shuffle = std::array<uint8_t, 32>;

constexpr std::array<Shuffle, 256> make_shuffles() {
  std::array<Shuffle, 256> shuffles{};
  for (unsigned bits = 0; bits < 256; ++bits) {
    unsigned value = 0;
    for (unsigned col = 0; col < 8; ++col) {
      const bool kept = (bits >> col & 1U) != 0;
      shuffles[bits][4 * col] = 0x80;
      shuffles[bits][4 * col + 1] = 0x80;
      shuffles[bits][4 * col + 2] = static_cast<uint8_t>(kept ? 2 * (value & 3U) : 0x80);
      shuffles[bits][4 * col + 3] = static_cast<uint8_t>(kept ? 2 * (value & 3U) + 1 : 0x80);
      value += kept ? 1 : 0;
    }
  }
  return shuffles;
}

alignas(64) constexpr std::array<Shuffle, 256> kShuffles = make_shuffles();

#pragma GCC push_options
#pragma GCC target("avx2,fma")

struct DotOfAvx2 {
  template <int num_rows, int num_tokens>
  static void rows(const SemiStructuredRows& w, int64_t row, const uint16_t* x,
                   const uint16_t* bias, uint16_t* y, int64_t y_stride) {
    __m256 sums[num_rows][num_tokens];
#pragma GCC unroll 4
    for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 4
      for (int t = 0; t < num_tokens; ++t) {
        sums[r][t] = _mm256_setzero_ps();
      }
    }
    const uint16_t* values = w.values + row * (w.cols / 2);
    const uint8_t* metadata = w.metadata + row * (w.cols / 8);
    for (int64_t byte = 0; byte < w.cols / 8; ++byte) {
      __m256 input[num_tokens];
#pragma GCC unroll 4
      for (int t = 0; t < num_tokens; ++t) {
        const __m128i narrow =
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + t * w.cols + 8 * byte));
        input[t] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
      }
#pragma GCC unroll 4
      for (int r = 0; r < num_rows; ++r) {
        int64_t four;
        std::memcpy(&four, values + r * (w.cols / 2) + 4 * byte, sizeof four);
        const Shuffle& shuffle = kShuffles[metadata[r * (w.cols / 8) + byte]];
        const __m256 expanded = _mm256_castsi256_ps(_mm256_shuffle_epi8(
            _mm256_set1_epi64x(four),
            _mm256_load_si256(reinterpret_cast<const __m256i*>(shuffle.data()))));
#pragma GCC unroll 4
        for (int t = 0; t < num_tokens; ++t) {
          sums[r][t] = _mm256_fmadd_ps(expanded, input[t], sums[r][t]);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 4
      for (int t = 0; t < num_tokens; ++t) {
        store(sum_of(sums[r][t]), row + r, bias, y + t * y_stride);
      }
    }
  }

  static NG_INLINE float sum_of(__m256 lanes) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
};

#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,avx512bf16,bmi2,fma")

// Bytes of values: memory is read this far ahead of the sums, past the end of a row into the next.
constexpr int64_t kAhead = 512;

struct DotOfAvx512 {
  template <int num_rows, int num_tokens>
  static void rows(const SemiStructuredRows& w, int64_t row, const uint16_t* x,
                   const uint16_t* bias, uint16_t* y, int64_t y_stride) {
    __m512 sums[num_rows][num_tokens];
#pragma GCC unroll 4
    for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 4
      for (int t = 0; t < num_tokens; ++t) {
        sums[r][t] = _mm512_setzero_ps();
      }
    }
    const uint16_t* values = w.values + row * (w.cols / 2);
    const uint8_t* metadata = w.metadata + row * (w.cols / 8);
    int64_t col = 0;
    for (; col + 32 <= w.cols; col += 32) {
      add<num_rows, num_tokens>(values + col / 2, metadata + col / 8, x + col, w.cols, 32, sums);
    }
    if (col < w.cols) {
      add<num_rows, num_tokens>(values + col / 2, metadata + col / 8, x + col, w.cols, w.cols - col,
                                sums);
    }
#pragma GCC unroll 4
    for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 4
      for (int t = 0; t < num_tokens; ++t) {
        store(_mm512_reduce_add_ps(sums[r][t]), row + r, bias, y + t * y_stride);
      }
    }
  }

  // `count` columns, 32 or a multiple of 8 below.
  template <int num_rows, int num_tokens>
  static NG_INLINE void add(const uint16_t* values, const uint8_t* metadata, const uint16_t* x,
                            int64_t cols, int64_t count, __m512 (&sums)[num_rows][num_tokens]) {
    __m512i input[num_tokens];
#pragma GCC unroll 4
    for (int t = 0; t < num_tokens; ++t) {
      input[t] = count == 32 ? _mm512_loadu_si512(x + t * cols)
                             : _mm512_maskz_loadu_epi16((1U << count) - 1, x + t * cols);
    }
#pragma GCC unroll 4
    for (int r = 0; r < num_rows; ++r) {
      const uint16_t* from = values + r * (cols / 2);
      _mm_prefetch(reinterpret_cast<const char*>(from) + kAhead, _MM_HINT_T0);
      const __m256i kept = count == 32 ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))
                                       : _mm256_maskz_loadu_epi16(
                                             static_cast<__mmask16>((1U << count / 2) - 1), from);
      uint32_t bits = 0;
      std::memcpy(&bits, metadata + r * (cols / 8), count == 32 ? 4 : count / 8);
      const __m512i expanded = _mm512_maskz_expand_epi16(bits, _mm512_castsi256_si512(kept));
#pragma GCC unroll 4
      for (int t = 0; t < num_tokens; ++t) {
        sums[r][t] = _mm512_dpbf16_ps(sums[r][t], (__m512bh)expanded, (__m512bh)input[t]);
      }
    }
  }
};

#pragma GCC pop_options

#endif

}  // namespace

void semi_structured_matvec_portable(const SemiStructuredRows& w, const uint16_t* x,
                                     int64_t num_tokens, const uint16_t* bias, uint16_t* y,
                                     int64_t y_stride) {
  for (int64_t row = 0; row < w.rows; ++row) {
    for (int64_t t = 0; t < num_tokens; ++t) {
      const uint16_t* value = w.values + row * (w.cols / 2);
      float sum = 0;
      for (int64_t col = 0; col < w.cols; col += 8) {
        for (unsigned bits = w.metadata[(row * w.cols + col) / 8]; bits != 0; bits &= bits - 1) {
          sum += to_float(*value++) * to_float(x[t * w.cols + col + std::countr_zero(bits)]);
        }
      }
      store(sum, row, bias, y + t * y_stride);
    }
  }
}

#if defined(__x86_64__)

void semi_structured_matvec_avx2(const SemiStructuredRows& w, const uint16_t* x, int64_t num_tokens,
                                 const uint16_t* bias, uint16_t* y, int64_t y_stride) {
  multiply_tokens<DotOfAvx2>(w, x, num_tokens, bias, y, y_stride);
}

void semi_structured_matvec(const SemiStructuredRows& w, const uint16_t* x, int64_t num_tokens,
                            const uint16_t* bias, uint16_t* y, int64_t y_stride) {
  const bool has_expand = __builtin_cpu_supports("avx512vbmi2") &&
                          __builtin_cpu_supports("avx512bf16") &&
                          __builtin_cpu_supports("avx512vl");
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  (has_expand ? multiply_tokens<DotOfAvx512>
   : has_avx2 ? multiply_tokens<DotOfAvx2>
              : semi_structured_matvec_portable)(w, x, num_tokens, bias, y, y_stride);
}

#else

void semi_structured_matvec(const SemiStructuredRows& w, const uint16_t* x, int64_t num_tokens,
                            const uint16_t* bias, uint16_t* y, int64_t y_stride) {
  semi_structured_matvec_portable(w, x, num_tokens, bias, y, y_stride);
}

#endif

}  // namespace narrowgauge::sparsity::kernels

#include "nn/kernels/attention.h"

// The standard headers that the headers below need, before the instructions change: an inline
// function of theirs that other files share must not be compiled for AVX-512 here. Our own headers
// behind the change hold nothing but always_inline functions and templates over Pairs.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// One of the few files with intrinsics: GCC does not find VDPBF16PS from a loop.
namespace narrowgauge::nn::kernels {

#if defined(__x86_64__)

bool has_avx512_attention() {
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

}  // namespace narrowgauge::nn::kernels

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,bmi2")
// GCC 12 warns of its own intrinsics, whose "undefined" registers are initialised by themselves.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "nn/kernels/attention_backward.h"
#include "nn/kernels/attention_forward.h"
#include "nn/kernels/attention_tiles.h"

namespace narrowgauge::nn::kernels {
namespace {

// A Word is two bf16 that VDPBF16PS multiplies and adds to an fp32 sum.
struct Pairs {
  using Element = uint16_t;
  typedef uint32_t __attribute__((may_alias)) Word;
  static constexpr int64_t kPair = 2;

  // 16 sums hide the latency of the product; a step reads 8 words of A and 2 registers of B.
  template <int64_t kARow, int64_t kAStep, int kVectors>
  NG_INLINE static void multiply(const Word* a, const Word* b, int64_t b_step, int64_t steps,
                                 float* c, int64_t c_row, bool add) {
    __m512 sum[attention::kTileRows][kVectors];
#pragma GCC unroll 8
    for (int64_t row = 0; row < attention::kTileRows; ++row) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) {
        sum[row][v] = add ? _mm512_loadu_ps(c + row * c_row + 16 * v) : _mm512_setzero_ps();
      }
    }
    for (int64_t step = 0; step < steps; ++step) {
      __m512bh right[kVectors];
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) {
        right[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + 16 * v));
      }
#pragma GCC unroll 8
      for (int64_t row = 0; row < attention::kTileRows; ++row) {
        const auto left =
            reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a[row * kARow])));
#pragma GCC unroll 2
        for (int64_t v = 0; v < kVectors; ++v) {
          sum[row][v] = _mm512_dpbf16_ps(sum[row][v], left, right[v]);
        }
      }
      a += kAStep;
      b += b_step;
    }
#pragma GCC unroll 8
    for (int64_t row = 0; row < attention::kTileRows; ++row) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) {
        _mm512_storeu_ps(c + row * c_row + 16 * v, sum[row][v]);
      }
    }
  }

  NG_INLINE static void pair_of_rows(const uint16_t* __restrict rows, int64_t row_stride,
                                     int64_t columns, Word* __restrict out) {
    for (int64_t i = 0; i < columns; ++i) {
      out[i] = rows[i] | static_cast<uint32_t>(rows[row_stride + i]) << 16;
    }
  }

  NG_INLINE static void transpose_panel(const uint16_t* rows, int64_t row_stride, int64_t words,
                                        Word* panel) {
    const auto* from = reinterpret_cast<const Word*>(rows);
    const int64_t stride = row_stride / kPair;
    const __m512i step =
        _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                           _mm512_set1_epi32(static_cast<int>(stride)));
    for (int64_t word = 0; word < words; ++word) {
      for (int64_t row = 0; row < attention::kPanel; row += 16) {
        _mm512_storeu_si512(panel + word * attention::kPanel + row,
                            _mm512_i32gather_epi32(step, from + row * stride + word, 4));
      }
    }
  }

  // count: a multiple of 32.
  NG_INLINE static void narrow_row(const float* row, int64_t count, uint16_t* out) {
    for (int64_t i = 0; i < count; i += 32) {
      const __m512bh both =
          _mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + i + 16), _mm512_loadu_ps(row + i));
      _mm512_storeu_si512(out + i, reinterpret_cast<__m512i>(both));
    }
  }

  // count: a multiple of 16.
  NG_INLINE static void narrow_row_pairs(const float* rows, int64_t row_stride, int64_t count,
                                         Word* out, int64_t out_stride) {
    for (int64_t row = 0; row < attention::kTileRows; row += 2) {
      const float* first = rows + row * row_stride;
      for (int64_t i = 0; i < count; i += 16) {
        const __m512i low = widen(first + i);
        const __m512i high = widen(first + row_stride + i);
        _mm512_storeu_si512(out + i, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
      }
      out += out_stride;
    }
  }

 private:
  // bf16 of 16 floats, each in the lower half of 32 bits.
  NG_INLINE static __m512i widen(const float* from) {
    return _mm512_cvtepu16_epi32(
        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(from))));
  }
};

int64_t packed_size(const AttentionShape& shape) {
  const attention::Geometry<Pairs> geometry(shape);
  return shape.batch * shape.num_kv_heads * (geometry.panels_size() + geometry.row_pairs_size());
}

int64_t forward_scratch_size(const AttentionShape& shape) {
  return attention::ForwardScratch<Pairs>::size(attention::Geometry<Pairs>(shape));
}

int64_t backward_scratch_size(const AttentionShape& shape) {
  return attention::BackwardScratch<Pairs>::size(attention::Geometry<Pairs>(shape));
}

void pack(const AttentionInput<uint16_t>& input, float* packed, int64_t begin, int64_t end) {
  attention::pack_keys_values<Pairs>(input, packed, begin, end);
}

void forward(const AttentionInput<uint16_t>& input, const float* packed, uint16_t* out,
             float* log_sum_exp, float* scratch, int64_t begin, int64_t end) {
  attention::forward<Pairs>(input, packed, out, log_sum_exp, scratch, begin, end);
}

void backward(const AttentionInput<uint16_t>& input, const AttentionGradients<uint16_t>& gradients,
              float* scratch, int64_t begin, int64_t end) {
  attention::backward<Pairs>(input, gradients, scratch, begin, end);
}

}  // namespace

AttentionKernel<uint16_t> avx512_attention() {
  return {packed_size, pack, forward_scratch_size, forward, backward_scratch_size, backward};
}

}  // namespace narrowgauge::nn::kernels

#pragma GCC pop_options

#else

bool has_avx512_attention() { return false; }
AttentionKernel<uint16_t> avx512_attention() { return {}; }

}  // namespace narrowgauge::nn::kernels

#endif

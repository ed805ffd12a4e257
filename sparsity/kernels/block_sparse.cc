#include "sparsity/kernels/block_sparse.h"

#include <algorithm>
#include <cstring>

#include "vectorize/bfloat16.h"
#include "vectorize/target_clones.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// One of the few files with intrinsics: GCC does not find VDPBF16PS from a loop.
//
// A tile is num_rows tokens x 16 num_vectors outputs, 24 of the 32 registers; it walks the blocks
// of its block row, so that a sum is stored once however many blocks there are.
namespace narrowgauge::sparsity::kernels {
namespace {

using vectorize::from_float;
using vectorize::to_float;

void matmul_portable(const BlockSparse& weight, int64_t row, const uint16_t* x, int64_t x_stride,
                     uint16_t* y, int64_t y_stride, int64_t num_tokens) {
  const int64_t size = weight.block_size;
  for (int64_t token = 0; token < num_tokens; ++token) {
    for (int64_t out = 0; out < size; ++out) {
      float sum = 0;
      for (int32_t i = weight.row_begin[row]; i < weight.row_begin[row + 1]; ++i) {
        const uint16_t* block = weight.values + i * size * size;
        const uint16_t* input = x + token * x_stride + weight.column[i] * size;
        for (int64_t in = 0; in < size; ++in) {
          sum += to_float(block[(in / 2 * size + out) * 2 + in % 2]) * to_float(input[in]);
        }
      }
      y[token * y_stride + row * size + out] = from_float<uint16_t>(sum);
    }
  }
}

#if defined(__x86_64__)

bool has_bf16_products() {
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl");
}

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")

NG_INLINE __m512 broadcast_pair(const uint16_t* x) {
  int32_t pair;
  std::memcpy(&pair, x, sizeof pair);
  return _mm512_castsi512_ps(_mm512_set1_epi32(pair));
}

// Outputs [out, out + 16 num_vectors) of block row `row`, for num_rows tokens.
template <int num_rows, int num_vectors>
void multiply_tile(const BlockSparse& weight, int64_t row, int64_t out, const uint16_t* x,
                   int64_t x_stride, uint16_t* y, int64_t y_stride) {
  const int64_t size = weight.block_size;
  __m512 sums[num_rows][num_vectors];
#pragma GCC unroll 24
  for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < num_vectors; ++v) {
      sums[r][v] = _mm512_setzero_ps();
    }
  }
  for (int32_t i = weight.row_begin[row]; i < weight.row_begin[row + 1]; ++i) {
    const uint16_t* block = weight.values + i * size * size + 2 * out;
    const uint16_t* input = x + weight.column[i] * size;
    for (int64_t in = 0; in < size; in += 2) {
      __m512i w[num_vectors];
#pragma GCC unroll 4
      for (int v = 0; v < num_vectors; ++v) {
        w[v] = _mm512_loadu_si512(block + in * size + 32 * v);
      }
#pragma GCC unroll 24
      for (int r = 0; r < num_rows; ++r) {
        const __m512 pair = broadcast_pair(input + r * x_stride + in);
#pragma GCC unroll 4
        for (int v = 0; v < num_vectors; ++v) {
          sums[r][v] = _mm512_dpbf16_ps(sums[r][v], (__m512bh)pair, (__m512bh)w[v]);
        }
      }
    }
  }
#pragma GCC unroll 24
  for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < num_vectors; ++v) {
      const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(sums[r][v]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + r * y_stride + row * size + out + 16 * v),
                          rounded);
    }
  }
}

template <int num_vectors>
void multiply_columns(const BlockSparse& weight, int64_t row, int64_t out, const uint16_t* x,
                      int64_t x_stride, uint16_t* y, int64_t y_stride, int64_t num_tokens) {
  constexpr int kRows = num_vectors == 4 ? 6 : 12;
  int64_t token = 0;
  for (; token + kRows <= num_tokens; token += kRows) {
    multiply_tile<kRows, num_vectors>(weight, row, out, x + token * x_stride, x_stride,
                                      y + token * y_stride, y_stride);
  }
  for (; token < num_tokens; ++token) {
    multiply_tile<1, num_vectors>(weight, row, out, x + token * x_stride, x_stride,
                                  y + token * y_stride, y_stride);
  }
}

void matmul_512(const BlockSparse& weight, int64_t row, const uint16_t* x, int64_t x_stride,
                uint16_t* y, int64_t y_stride, int64_t num_tokens) {
  int64_t out = 0;
  for (; out + 64 <= weight.block_size; out += 64) {
    multiply_columns<4>(weight, row, out, x, x_stride, y, y_stride, num_tokens);
  }
  for (; out + 32 <= weight.block_size; out += 32) {
    multiply_columns<2>(weight, row, out, x, x_stride, y, y_stride, num_tokens);
  }
  for (; out < weight.block_size; out += 16) {
    multiply_columns<1>(weight, row, out, x, x_stride, y, y_stride, num_tokens);
  }
}

#pragma GCC pop_options

#endif

}  // namespace

void pack_blocks(const uint16_t* blocks, int64_t num_blocks, int64_t block_size, uint16_t* packed) {
  for (int64_t i = 0; i < num_blocks; ++i) {
    const uint16_t* block = blocks + i * block_size * block_size;
    for (int64_t in = 0; in < block_size; in += 2) {
      for (int64_t out = 0; out < block_size; ++out) {
        *packed++ = block[out * block_size + in];
        *packed++ = block[out * block_size + in + 1];
      }
    }
  }
}

void block_sparse_matmul(const BlockSparse& weight, int64_t row_begin, int64_t row_end,
                         const uint16_t* x, int64_t x_stride, uint16_t* y, int64_t y_stride,
                         int64_t num_tokens) {
  // Some tokens at a time: their columns of x stay in the cache while the block rows pass.
  constexpr int64_t kTokens = 96;
  for (int64_t token = 0; token < num_tokens; token += kTokens) {
    const int64_t count = std::min(kTokens, num_tokens - token);
    for (int64_t row = row_begin; row < row_end; ++row) {
      const uint16_t* input = x + token * x_stride;
      uint16_t* output = y + token * y_stride;
#if defined(__x86_64__)
      if (has_bf16_products()) {
        matmul_512(weight, row, input, x_stride, output, y_stride, count);
        continue;
      }
#endif
      matmul_portable(weight, row, input, x_stride, output, y_stride, count);
    }
  }
}

}  // namespace narrowgauge::sparsity::kernels

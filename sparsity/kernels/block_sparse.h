#pragma once

#include <cstdint>

// Product with a block-sparse matrix: block compressed rows (BSR) of square blocks of bf16.
namespace narrowgauge::sparsity::kernels {

// A matrix W of [block_rows * block_size, ...] whose blocks [row_begin[r], row_begin[r + 1]) belong
// to block row r and start at column column[i] * block_size. `values` holds each block as
// [block_size / 2][block_size][2]: element (out, in) at (in / 2, out, in % 2), the order that a
// product of pairs reads.
struct BlockSparse {
  const int32_t* row_begin;
  const int32_t* column;
  const uint16_t* values;
  int64_t block_size;  // a multiple of 16
};

// Brings the `num_blocks` blocks of [block_size, block_size] (out, in) into that order.
void pack_blocks(const uint16_t* blocks, int64_t num_blocks, int64_t block_size, uint16_t* packed);

// y[t, r * block_size + i] for tokens [0, num_tokens) and block rows [row_begin, row_end): x W^T,
// summed in fp32. x: [tokens, x_stride], y: [tokens, y_stride], bf16.
void block_sparse_matmul(const BlockSparse& weight, int64_t row_begin, int64_t row_end,
                         const uint16_t* x, int64_t x_stride, uint16_t* y, int64_t y_stride,
                         int64_t num_tokens);

}  // namespace narrowgauge::sparsity::kernels

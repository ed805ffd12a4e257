#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace narrowgauge::sparsity {

// A matrix [rows, cols] of square blocks, most of them zero: block compressed rows (BSR), as
// torch's to_sparse_bsr. fp32 or bf16; products in bf16 on the CPU where the processor has them.
struct BlockSparseMatrix {
  int64_t rows = 0;
  int64_t cols = 0;
  at::Tensor crow_indices;  // int32 [rows / block_size + 1]
  at::Tensor col_indices;   // int32 [blocks], in blocks, ascending in each block row
  at::Tensor values;        // [blocks, block_size, block_size]
  at::Tensor packed;        // the same in the order of the product's kernel; bf16 only

  int64_t block_size() const { return values.size(1); }
  int64_t num_blocks() const { return values.size(0); }
};

// Keeps the blocks with any element that is not zero (NaN is kept). REQUIRES: both sizes multiples
// of block_size, a multiple of 16; throws c10::Error otherwise.
BlockSparseMatrix to_block_sparse(const at::Tensor& weight, int64_t block_size);

at::Tensor to_dense(const BlockSparseMatrix& matrix);

// W^T, for the gradient of the input.
BlockSparseMatrix transpose(const BlockSparseMatrix& matrix);

// x W^T. x: [tokens, cols] -> [tokens, rows], in x's dtype, which must be W's; sums in fp32.
at::Tensor block_sparse_matmul(const at::Tensor& x, const BlockSparseMatrix& weight);

}  // namespace narrowgauge::sparsity

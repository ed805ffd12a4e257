#include "sparsity/block_sparse.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "nn/kernel_dispatch.h"
#include "sparsity/kernels/block_sparse.h"

namespace narrowgauge::sparsity {
namespace {

using nn::const_pointer;
using nn::mutable_pointer;

// [rows / size, cols / size, size, size], a view.
at::Tensor block_view(const at::Tensor& matrix, int64_t size) {
  return matrix.view({matrix.size(0) / size, size, matrix.size(1) / size, size})
      .permute({0, 2, 1, 3});
}

// `keep`: bool [rows / size, cols / size].
BlockSparseMatrix gather_blocks(const at::Tensor& blocks, const at::Tensor& keep) {
  BlockSparseMatrix matrix;
  const int64_t size = blocks.size(2);
  matrix.rows = blocks.size(0) * size;
  matrix.cols = blocks.size(1) * size;
  const at::Tensor positions = keep.nonzero();
  matrix.col_indices = positions.select(1, 1).to(at::kInt).contiguous();
  matrix.crow_indices = at::zeros({keep.size(0) + 1}, at::kInt);
  matrix.crow_indices.narrow(0, 1, keep.size(0)).copy_(keep.sum(1).cumsum(0));
  matrix.values = blocks.index({positions.select(1, 0), positions.select(1, 1)}).contiguous();
  if (matrix.values.scalar_type() == at::kBFloat16) {
    matrix.packed = at::empty_like(matrix.values);
    kernels::pack_blocks(const_pointer<uint16_t>(matrix.values), matrix.num_blocks(), size,
                         mutable_pointer<uint16_t>(matrix.packed));
  }
  return matrix;
}

// Rows of blocks of every block, in the order of `values`.
at::Tensor block_rows(const BlockSparseMatrix& matrix) {
  const int64_t num_rows = matrix.rows / matrix.block_size();
  const at::Tensor rows = at::empty({matrix.num_blocks()}, at::kLong);
  const int32_t* begin = matrix.crow_indices.const_data_ptr<int32_t>();
  auto* out = rows.mutable_data_ptr<int64_t>();
  for (int64_t row = 0; row < num_rows; ++row) {
    std::fill(out + begin[row], out + begin[row + 1], row);
  }
  return rows;
}

}  // namespace

BlockSparseMatrix to_block_sparse(const at::Tensor& weight, int64_t block_size) {
  TORCH_CHECK(block_size > 0 && block_size % 16 == 0, "expected a block_size that 16 divides, got ",
              block_size);
  TORCH_CHECK(
      weight.dim() == 2 && weight.size(0) % block_size == 0 && weight.size(1) % block_size == 0,
      "expected [rows, cols], both multiples of ", block_size, ", got ", weight.sizes());
  TORCH_CHECK(weight.is_cpu() && nn::has_kernel(weight), "expected fp32 or bf16 on the CPU, got ",
              weight.dtype(), " on ", weight.device());
  const at::Tensor blocks = block_view(weight.detach().contiguous(), block_size);
  return gather_blocks(blocks, blocks.ne(0).any(3).any(2));
}

at::Tensor to_dense(const BlockSparseMatrix& matrix) {
  const at::Tensor dense = at::zeros({matrix.rows, matrix.cols}, matrix.values.options());
  block_view(dense, matrix.block_size())
      .index_put_({block_rows(matrix), matrix.col_indices.to(at::kLong)}, matrix.values);
  return dense;
}

BlockSparseMatrix transpose(const BlockSparseMatrix& matrix) {
  const int64_t size = matrix.block_size();
  const at::Tensor dense = to_dense(matrix).t().contiguous();
  const at::Tensor keep = at::zeros({matrix.cols / size, matrix.rows / size}, at::kBool);
  keep.index_put_({matrix.col_indices.to(at::kLong), block_rows(matrix)},
                  at::zeros({}, at::kBool).logical_not());
  return gather_blocks(block_view(dense, size), keep);
}

at::Tensor block_sparse_matmul(const at::Tensor& x, const BlockSparseMatrix& weight) {
  TORCH_CHECK(
      x.dim() == 2 && x.size(1) == weight.cols && x.scalar_type() == weight.values.scalar_type(),
      "expected ", weight.values.dtype(), " [tokens, ", weight.cols, "], got ", x.dtype(), " ",
      x.sizes());
  if (!weight.packed.defined()) {
    return at::mm(x, to_dense(weight).t());
  }
  const at::Tensor input = x.contiguous();
  const at::Tensor y = at::empty({x.size(0), weight.rows}, x.options());
  const kernels::BlockSparse blocks{weight.crow_indices.const_data_ptr<int32_t>(),
                                    weight.col_indices.const_data_ptr<int32_t>(),
                                    const_pointer<uint16_t>(weight.packed), weight.block_size()};
  const int64_t num_rows = weight.rows / weight.block_size();
  // Block rows differ in how many blocks they have: many small pieces of work.
  at::parallel_for(0, num_rows, 1, [&](int64_t begin, int64_t end) {
    kernels::block_sparse_matmul(blocks, begin, end, const_pointer<uint16_t>(input), weight.cols,
                                 mutable_pointer<uint16_t>(y), weight.rows, x.size(0));
  });
  return y;
}

}  // namespace narrowgauge::sparsity

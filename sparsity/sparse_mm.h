#pragma once

#include <ATen/core/Tensor.h>

namespace narrowgauge::sparsity {

// Products with 2:4 sparse matrices on a GPU's sparse tensor cores, through libtorch's cuSPARSELt.

// A matrix W that is 2:4 along both dims, in cuSPARSELt's layout, as it is and transposed: 9/16 of
// W's bytes each.
struct SparseOperands {
  at::Tensor packed;    // of W [rows, cols], for x W^T
  at::Tensor packed_t;  // of W^T, for x W
};

// Whether there is such a product for x [n, *] and W: bf16 on a GPU, W's sizes multiples of 64 and
// n of
// 8. It may still be slower than a dense one for a small W.
bool has_sparse_mm(const at::Tensor& x, const at::Tensor& weight);

// `masked` must be zero where it is pruned, and 2:4 along both dims (semi_structured_mask makes
// such masks): all that is not zero is kept. One kernel.
SparseOperands pack_for_sparse_mm(const at::Tensor& masked);

// x A^T for the packed form of A [m, k]. x: [n, k] -> [n, m], bf16, summed in fp32.
at::Tensor sparse_mm(const at::Tensor& x, const at::Tensor& packed);

}  // namespace narrowgauge::sparsity

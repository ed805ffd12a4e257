#include "sparsity/sparse_mm.h"

#include <ATen/ops/_cslt_sparse_mm.h>
#include <ATen/ops/_sparse_semi_structured_tile.h>

#include <tuple>

namespace narrowgauge::sparsity {

bool has_sparse_mm(const at::Tensor& x, const at::Tensor& weight) {
  constexpr int64_t kWeightMultiple = 64;
  constexpr int64_t kTokensMultiple = 8;
  return x.is_cuda() && x.scalar_type() == at::kBFloat16 && weight.scalar_type() == at::kBFloat16 &&
         x.size(0) > 0 && x.size(0) % kTokensMultiple == 0 &&
         weight.size(0) % kWeightMultiple == 0 && weight.size(1) % kWeightMultiple == 0;
}

SparseOperands pack_for_sparse_mm(const at::Tensor& masked) {
  // The operator chooses masks itself, greedily: of a tile that is masked already it takes all
  // there is.
  const auto [packed, meta, packed_t, meta_t, bitmask] =
      at::_sparse_semi_structured_tile(masked, "largest_abs_values_greedy", /*use_cutlass=*/false);
  return {packed.view({masked.size(0), -1}), packed_t.view({masked.size(1), -1})};
}

at::Tensor sparse_mm(const at::Tensor& x, const at::Tensor& packed) {
  return at::_cslt_sparse_mm(packed, x.t(), /*bias=*/std::nullopt, /*alpha=*/std::nullopt,
                             /*out_dtype=*/std::nullopt, /*transpose_result=*/true);
}

}  // namespace narrowgauge::sparsity

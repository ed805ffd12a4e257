#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "nn/layer.h"
#include "nn/linear.h"
#include "nn/swap_linear.h"
#include "sparsity/semi_sparse_mask.h"
#include "sparsity/semi_structured.h"

namespace narrowgauge::sparsity {

// y = x (mask * W)^T + b.
class SemiSparseLinear : public nn::Linear, public SemiSparseMask {
 public:
  SemiSparseLinear(const nn::Linear& source, const SemiSparseOptions& options);

 protected:
  at::Tensor forward(const at::Tensor& x) override;
};

// y = (mask * x) W^T + b with a mask along both dims of x [tokens, in], made anew each time; the
// gradient of x passes straight through. Backward needs the packed x alone: 9/16 of its bytes.
// Tokens are padded to a multiple of 4 with zeros.
class SemiSparseActivationLinear : public nn::Linear {
 public:
  SemiSparseActivationLinear(const nn::Linear& source, TileAlgorithm algorithm);

  TileAlgorithm algorithm;

 protected:
  at::Tensor forward(const at::Tensor& x) override;
};

// Makes a SemiSparseLinear of every Linear below `root` that `filter` accepts (all where it is
// null) and whose weight has_semi_structured_shape. Before fully_shard. Returns how many.
int64_t swap_linear_with_semi_sparse_linear(nn::Layer& root, const SemiSparseOptions& options,
                                            const nn::LinearFilter& filter = nullptr);

// Makes a plain Linear of each of them again, for dense training or export. The weights are what
// they were, pruned elements included: apply_mask makes the zeros.
int64_t swap_semi_sparse_linear_with_linear(nn::Layer& root);

}  // namespace narrowgauge::sparsity

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "nn/linear.h"
#include "sparsity/block_sparse.h"

namespace narrowgauge::sparsity {

// y = x (mask * W)^T + b where the mask, of blocks, is learned: a block is kept if its score is
// among the largest (Ramanujan et al. 2020, as torchao's SupermaskLinear). Of n blocks, round((1 -
// s) n) are kept, more where scores are equal.
//
// The gradient of the kept weights is that of the masked product; a score's, straight through the
// choice, is the sum over its block of (gradient of the masked weight) * W.
class SupermaskLinear : public nn::Linear {
 public:
  // scores are uniform in +-1 / sqrt(cols / block_size), kaiming_uniform with a = sqrt(5), from
  // torch's generator. REQUIRES: both features multiples of block_size; 0 <= sparsity_level < 1.
  SupermaskLinear(const nn::Linear& source, double sparsity_level, int64_t block_size);

  at::Tensor scores;  // [out / block_size, in / block_size], of the weight's dtype, trained

  // bool, of the scores' sizes.
  at::Tensor block_mask() const;

  // The same function without scores: a Linear of mask * W, or its block-sparse matrix.
  std::shared_ptr<nn::Linear> to_linear() const;
  BlockSparseMatrix to_block_sparse() const;

  double sparsity_level() const { return sparsity_level_; }
  int64_t block_size() const { return block_size_; }

 protected:
  at::Tensor forward(const at::Tensor& x) override;

 private:
  at::Tensor masked_weight() const;

  double sparsity_level_;
  int64_t block_size_;
};

}  // namespace narrowgauge::sparsity

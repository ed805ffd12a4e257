#pragma once

#include <ATen/core/Tensor.h>

#include "float8/float8_linear.h"
#include "sparsity/semi_sparse_mask.h"

namespace narrowgauge::trainer {

// A Float8Linear of the masked weight: the mask first, then scale and cast, so that scales are
// those of what is multiplied, and a pruned weight is code 0 in both products. What reaches the
// weight of the masked weight's gradient is options.gradient's matter, as in SemiSparseLinear. Each
// forward masks and casts anew: a sharded weight travels in high precision, since tiles and scales
// are of the whole matrix.
class Float8SemiSparseLinear : public float8::Float8Linear, public sparsity::SemiSparseMask {
 public:
  Float8SemiSparseLinear(const nn::Linear& source, const float8::Float8LinearConfig& config,
                         const sparsity::SemiSparseOptions& options);

  bool casts_its_parameter() const override { return false; }

 protected:
  at::Tensor forward(const at::Tensor& x) override;
};

}  // namespace narrowgauge::trainer

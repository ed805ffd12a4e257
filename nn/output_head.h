#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "nn/linear.h"

namespace narrowgauge::nn {

// The last Linear of a language model, which can also go straight to the loss. A conversion that
// replaces it (float8, say) leaves a Linear that cannot, and its logits are computed all at once.
class OutputHead : public Linear {
 public:
  using Linear::Linear;

  // linear_cross_entropy_sum of this layer's output, between its hooks. REQUIRES: no bias. x: [N,
  // in_features].
  at::Tensor cross_entropy_sum(const at::Tensor& x, const at::Tensor& targets, double scale,
                               int64_t ignore_index);
};

}  // namespace narrowgauge::nn

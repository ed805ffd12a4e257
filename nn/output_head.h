#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "nn/linear.h"

namespace narrowgauge::nn {

// The last Linear of a language model, which can also go straight to the loss. A conversion that
// replaces it (float8, say) leaves a Linear that cannot, and its logits are computed all at once.
class OutputHead : public Linear {
 public:
  using Linear::Linear;

  // loss(x, this layer's weight), between its hooks; `loss` holds what it needs by value. REQUIRES:
  // no bias. x: [N, in_features].
  at::Tensor loss(
      const at::Tensor& x,
      const std::function<at::Tensor(const at::Tensor& x, const at::Tensor& weight)>& loss);
};

}  // namespace narrowgauge::nn

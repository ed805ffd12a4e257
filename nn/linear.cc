#include "nn/linear.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>

namespace narrowgauge::nn {

Linear::Linear(LinearSpec spec, const at::TensorOptions& options) : spec(spec) {
  add_parameter("weight", weight, at::empty({spec.out_features, spec.in_features}, options));
  if (spec.bias) {
    add_parameter("bias", bias, at::empty({spec.out_features}, options));
  }
}

Linear::Linear(const Linear& source) : Layer(), spec(source.spec) {
  // A frozen parameter stays frozen: registering makes it trainable.
  const bool trains_weight = source.weight.requires_grad();
  const bool trains_bias = source.bias.defined() && source.bias.requires_grad();
  add_parameter("weight", weight, source.weight);
  add_parameter("bias", bias, source.bias);
  weight.set_requires_grad(trains_weight);
  if (bias.defined()) {
    bias.set_requires_grad(trains_bias);
  }
}

at::Tensor Linear::operator()(const at::Tensor& x) {
  return hooked(x, [this](const at::Tensor& input) { return forward(input); });
}

at::Tensor Linear::forward(const at::Tensor& x) { return at::linear(x, weight, bias); }

}  // namespace narrowgauge::nn

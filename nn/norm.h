#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <utility>

#include "nn/layer.h"

namespace narrowgauge::nn {

// Root-mean-square norm over the last dim: x / sqrt(mean(x^2) + eps) * weight, statistics in fp32
// (Zhang and Sennrich 2019; the arithmetic is nn/rms_norm.h).
class RMSNorm : public Layer {
 public:
  RMSNorm(int64_t dim, double eps, const at::TensorOptions& options);

  // x: [..., dim] -> the same shape and dtype.
  at::Tensor operator()(const at::Tensor& x);

  // residual + x and its norm, in one pass over memory; x passes through the hooks. Both: [...,
  // dim], one dtype.
  std::pair<at::Tensor, at::Tensor> operator()(const at::Tensor& residual, const at::Tensor& x);

  // Is shown each sum of the form above, of which the output is the norm.
  void register_sum_hook(std::function<void(const at::Tensor&)> hook) {
    sum_hook_ = std::move(hook);
  }

  at::Tensor weight;  // [dim]
  double eps;

 private:
  std::function<void(const at::Tensor&)> sum_hook_;
};

}  // namespace narrowgauge::nn

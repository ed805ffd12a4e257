#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "nn/layer.h"

namespace narrowgauge::nn {

// Root-mean-square norm over the last dim: x / sqrt(mean(x^2) + eps) * weight, statistics in fp32
// (Zhang and Sennrich 2019; the arithmetic is nn/rms_norm.h).
class RMSNorm : public Layer {
 public:
  RMSNorm(int64_t dim, double eps, const at::TensorOptions& options);

  // x: [..., dim] -> the same shape and dtype.
  at::Tensor operator()(const at::Tensor& x);

  at::Tensor weight;  // [dim]
  double eps;
};

}  // namespace narrowgauge::nn

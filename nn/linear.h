#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "nn/layer.h"

namespace narrowgauge::nn {

struct LinearSpec {
  int64_t in_features = 0;
  int64_t out_features = 0;
  bool bias = false;
};

// y = x W^T + b. The one layer that conversions (float8, QAT, sparsity) replace: they derive from
// it, start from an existing Linear by sharing its parameters, and override forward. See
// nn/swap_linear.h.
class Linear : public Layer {
 public:
  // Parameters are empty; options give dtype and device (meta included).
  Linear(LinearSpec spec, const at::TensorOptions& options);
  // Shares weight and bias with `source`.
  explicit Linear(const Linear& source);

  // x: [..., in_features] -> [..., out_features], in x's dtype. REQUIRES: x and weight share a
  // dtype.
  at::Tensor operator()(const at::Tensor& x);

  LinearSpec spec;
  at::Tensor weight;  // [out_features, in_features]
  at::Tensor bias;    // [out_features]; undefined without bias

 protected:
  virtual at::Tensor forward(const at::Tensor& x);
};

}  // namespace narrowgauge::nn

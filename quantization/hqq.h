#pragma once

#include <ATen/core/Tensor.h>

#include "quantization/quantized_tensor.h"

// HQQ (Badri, Shaji 2023), without data: zero points, or scales where there are none, that fit the
// weight better than its range does.
namespace narrowgauge::quantization {

// weight: [rows, cols]. spec: an affine grid, per row or per group.
// With zero points: half-quadratic steps with torchao's constants (p 0.7, beta 10, kappa 1.01, 20
// steps, stopped when the mean error grows). Without: scale = <w, q> / <q, q> and rounding in turn,
// which is torchao's hqq_scale_only. A group keeps what its range gives where that has the smaller
// squared error.
QuantizedTensor hqq(const at::Tensor& weight, const QuantizationSpec& spec);

}  // namespace narrowgauge::quantization

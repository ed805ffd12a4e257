#pragma once

#include <ATen/core/Tensor.h>

#include "quantization/quantization_spec.h"

namespace narrowgauge::quantization {

// x as [rows, groups, columns of a group], where rows is the product of all dimensions but the
// last; per tensor [1, 1, numel]. A view where strides allow. Throws c10::Error unless x has a
// dimension and the last one is divisible by the group.
at::Tensor grouped(const at::Tensor& x, const QuantizationSpec& spec);

}  // namespace narrowgauge::quantization

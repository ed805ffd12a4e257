#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "quantization/quantized_tensor.h"

namespace narrowgauge::exports {

// Throws c10::Error, naming `what` and the first element that differs, unless both tensors have the
// same dtype, sizes and bits. NaN equals the same NaN, 0 is not -0.
void require_bit_equal(const at::Tensor& expected, const at::Tensor& actual,
                       const std::string& what);

// The same of codes, scales, zero points and outer scales.
void require_bit_equal(const quantization::QuantizedTensor& expected,
                       const quantization::QuantizedTensor& actual, const std::string& what);

}  // namespace narrowgauge::exports

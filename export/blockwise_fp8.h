#pragma once

#include <ATen/core/Tensor.h>

#include "quantization/quantized_tensor.h"
#include "quantization/scheme.h"

namespace narrowgauge::exports {

// The scheme that the recipe `blockwise` trains with: e4m3 with a scale for each square of 128 x
// 128 (scale [ceil(rows / 128), ceil(cols / 128)], fp32, what values are multiplied by), inputs in
// fp8 by rows of 128. Its specification says groups of 128, which quantization/ has for no other
// fp8 weight.
quantization::Scheme blockwise_fp8_scheme();

// quantization::dequantize for every weight of an export, those squares included.
at::Tensor dequantize_weight(const quantization::QuantizedTensor& weight, at::ScalarType dtype);

}  // namespace narrowgauge::exports

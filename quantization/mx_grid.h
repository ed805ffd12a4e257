#pragma once

#include "quantization/quantized_tensor.h"

namespace narrowgauge::quantization {

// Blocks of 32 with a power of two (OCP microscaling formats 1.0), exponents as torchao's RCEIL:
// ceil(log2(amax / largest value)), so that nothing saturates. A block with NaN or an infinity is
// NaN (exponent 255), where torchao makes numbers of what stands beside an infinity.
QuantizedTensor quantize_mx(const at::Tensor& x, const QuantizationSpec& spec);
at::Tensor dequantize_mx(const QuantizedTensor& q, c10::ScalarType dtype);

}  // namespace narrowgauge::quantization

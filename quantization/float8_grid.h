#pragma once

#include "quantization/quantized_tensor.h"

namespace narrowgauge::quantization {

// torchao's _choose_scale_float8 and _quantize_affine_float8: scale = amax / 448 in x's dtype, kept
// as fp32; code = e4m3(clamp(x / scale, -448, 448)) in fp32. amax is at least spec.eps, where
// torchao has no bound and makes NaN of a row of zeros. An infinite amax gives NaN.
QuantizedTensor quantize_float8(const at::Tensor& x, const QuantizationSpec& spec);
at::Tensor dequantize_float8(const QuantizedTensor& q, c10::ScalarType dtype);

// Each row to fp8 and back, in x's dtype: torchao's quantize_fp8_row, amax at least 1e-12.
at::Tensor round_rows_to_float8(const at::Tensor& x);

}  // namespace narrowgauge::quantization

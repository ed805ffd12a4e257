#pragma once

#include "quantization/quantized_tensor.h"

namespace narrowgauge::quantization {

// llama.cpp's blocks of 32 (ggml-quants.c, quantize_row_q4_0_ref and
// quantize_row_q8_0_ref):
//   Q4_0: d = m / -8, m the element of the largest magnitude with its sign (the
//   first of equals);
//         code = min(15, trunc(x * (1 / d) + 8.5)), the sum rounded once (a
//         fused multiply-add)
//   Q8_0: d = max |x| / 127; code = x * (1 / d) rounded half away from zero
// Codes are taken with d in fp32, values with d rounded to fp16, as there. d =
// 0 gives zeros. A block with NaN or an infinity, or with d beyond fp16, gives
// values that are not finite.
QuantizedTensor quantize_gguf(const at::Tensor& x, const QuantizationSpec& spec);
at::Tensor dequantize_gguf(const QuantizedTensor& q, c10::ScalarType dtype);

// Where Q4_0's code would be 16 or more: bool, of x's shape.
at::Tensor clipped_q4_0(const at::Tensor& x, const QuantizationSpec& spec);

}  // namespace narrowgauge::quantization

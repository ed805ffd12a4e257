#pragma once

#include "quantization/quantized_tensor.h"

namespace narrowgauge::quantization {

// Blocks of 16: e2m1 codes, an e4m3 scale of each block, an fp32 scale of the tensor, amax / (448 *
// 6). As torchao's nvfp4_quantize with a scale for the tensor, except that a tensor of zeros, which
// it makes NaN of, stays zero (outer scale 1). Values are code * (outer scale * block scale) in
// fp32, as GPUs compute; torchao's emulation rounds the product of scales to bf16 for bf16 tensors.
QuantizedTensor quantize_nvfp4(const at::Tensor& x, const QuantizationSpec& spec);
at::Tensor dequantize_nvfp4(const QuantizedTensor& q, c10::ScalarType dtype);

}  // namespace narrowgauge::quantization

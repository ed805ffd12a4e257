#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "quantization/quantization_spec.h"

namespace narrowgauge::quantization {

// A tensor as codes and what gives values back. rows, cols: those of the codes
// as a matrix.
struct QuantizedTensor {
  // The tensor's shape, one byte an element, never packed: int8 or uint8
  // (affine, GGUF), float8_e4m3fn (kFloat8, kMxfp8), or uint8 with an e2m1 code
  // 0..15 (kMxfp4, kNvfp4).
  at::Tensor codes;
  // [rows, cols / group], [rows, 1] per row or token, [1, 1] per tensor. fp16
  // (GGUF), uint8 with an exponent of 2^(e - 127) (MX; 255 is NaN),
  // float8_e4m3fn (NVFP4), fp32 (kFloat8), or what the specification says.
  at::Tensor scale;
  // scale's shape. kInt: of the codes' dtype. kFloat: see ZeroPointDomain.
  std::optional<at::Tensor> zero_point;
  std::optional<at::Tensor> outer_scale;  // NVFP4: fp32, [1, 1]
  QuantizationSpec spec;
};

// Round to nearest. x: floating, any rank and strides, at least one dimension.
// Not differentiable. Where x holds NaN or an infinity, so do the values of its
// group, all or some. Throws c10::Error for a last dimension the group does not
// divide.
QuantizedTensor quantize(const at::Tensor& x, const QuantizationSpec& spec);

// The values, as the runtimes of each format compute them. dtype: bf16, fp16 or
// fp32.
at::Tensor dequantize(const QuantizedTensor& q, c10::ScalarType dtype);

// dequantize(quantize(x, spec), x's dtype) bit for bit.
at::Tensor fake_quantize(const at::Tensor& x, const QuantizationSpec& spec);

// Where a value lay beyond the largest or smallest code by more than rounding
// makes good: bool, of x's shape, where the gradient of fake quantization
// stops. Undefined for grids whose scales let nothing be clipped (can_clip).
at::Tensor clipped(const at::Tensor& x, const QuantizationSpec& spec);
bool can_clip(const QuantizationSpec& spec);

// Rows [begin, end) of a matrix: q_proj of a qkv_proj. Per tensor, the scale
// stays that of all.
QuantizedTensor rows(const QuantizedTensor& q, int64_t begin, int64_t end);

// Throws c10::Error naming the tensor unless dtypes and shapes are those above
// and codes lie on the grid: for what was read from a file.
void check_quantized_tensor(const QuantizedTensor& q);

}  // namespace narrowgauge::quantization

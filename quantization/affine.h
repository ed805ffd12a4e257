#pragma once

#include <ATen/core/Tensor.h>

#include "quantization/quantization_spec.h"

// The arithmetic of evenly spaced codes, operator by operator in the dtypes in
// which torchao 0.17 computes (quant_primitives.py, on CPU), so that its bits
// and ours agree: an operation on bf16 rounds to bf16. Functions take x of any
// rank, floating, its last dimension divided into groups. A group that holds
// NaN or an infinity gives values that are NaN.
namespace narrowgauge::quantization {

// Of each group: [rows, cols / group], or [1, 1] per tensor.
struct AffineQparams {
  at::Tensor scale;
  at::Tensor zero_point;  // undefined with ZeroPointDomain::kNone
  // Float domain: the value of code 0 where it is known before rounding, else
  // undefined, which stands for zero_point - scale * 2^(bits - 1).
  at::Tensor lowest = {};
};

// Scales and zero points of x's own range, before they are rounded to the
// dtypes they are stored in. Integer domain (choose_qparams_affine): in x's
// dtype. Float domain (MSLK's int4_row_quantize_zp): fp32, zero_point = min +
// scale * 2^(bits - 1). x has no gradient here.
AffineQparams choose_qparams_affine(const at::Tensor& x, const QuantizationSpec& spec);

// In the dtypes of the specification, kInputDtype being `input_dtype`.
AffineQparams stored_qparams(const AffineQparams& qparams, const QuantizationSpec& spec,
                             c10::ScalarType input_dtype);

// Codes, int8 or uint8, of x's shape:
//   clamp(round(x * (1 / scale)) + zero_point, quant_min, quant_max)
//   float domain: clamp(round((x - lowest) / scale), quant_min, quant_max), in
//   fp32
at::Tensor quantize_affine(const at::Tensor& x, const AffineQparams& qparams,
                           const QuantizationSpec& spec);

// Where rounding gave a code outside of [quant_min, quant_max]: bool, of x's
// shape.
at::Tensor clipped_affine(const at::Tensor& x, const AffineQparams& qparams,
                          const QuantizationSpec& spec);

// (code - zero_point) * scale, or (code - 2^(bits - 1)) * scale + zero_point in
// fp32, as `dtype`.
at::Tensor dequantize_affine(const at::Tensor& codes, const AffineQparams& qparams,
                             const QuantizationSpec& spec, c10::ScalarType dtype);

}  // namespace narrowgauge::quantization

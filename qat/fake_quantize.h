#pragma once

#include <ATen/core/Tensor.h>

#include "quantization/quantization_spec.h"

// Fake quantization: a tensor's values as they will be after it has been quantized, in its own
// floating dtype, with a gradient. quantization/ says what the values are; here is the fused form,
// one pass forward and one backward, and what the gradient is:
//
//   straight-through (Bengio 2013): grad_x = grad_y where the value was rounded to a code, 0 where
//   it was clipped to the range's end. Scales and zero points are functions of x, taken as
//   constants.
namespace narrowgauge::qat {

struct FakeQuantized {
  at::Tensor values;  // as quantization::fake_quantize
  // Where the gradient stops: bits, 64 columns an int64, [rows, ceil(cols / 64)]. Undefined: none.
  at::Tensor clipped;
};

// x: floating, any rank, converted to `dtype` first, as if it had been. No gradient is recorded.
// want_clipped: whether `clipped` is asked for. In fp32 and bf16 on the CPU: one pass over x on
// affine grids, two on others; on a GPU one pass on affine grids, ATen operators on others.
FakeQuantized fake_quantize_with_clipped(const at::Tensor& x,
                                         const quantization::QuantizationSpec& spec,
                                         at::ScalarType dtype, bool want_clipped);

// Sets grad, of x's shape, to 0 where `clipped` (undefined: nowhere) says. In place where grad is
// contiguous and returns it.
at::Tensor zero_clipped(at::Tensor grad, const at::Tensor& clipped);

// Differentiable, in x's dtype.
at::Tensor fake_quantize(const at::Tensor& x, const quantization::QuantizationSpec& spec);

// fake_quantize_with_clipped in ATen operators.
FakeQuantized fake_quantize_with_clipped_reference(const at::Tensor& x,
                                                   const quantization::QuantizationSpec& spec,
                                                   at::ScalarType dtype, bool want_clipped);

}  // namespace narrowgauge::qat

#pragma once

#include <ATen/core/Tensor.h>

#include "float8/float8_training_tensor.h"

namespace narrowgauge::float8 {

// y = A B^T + bias from fp8 operands: every product of codes is exact, sums are fp32, scales are
// applied to the sums (once, or once for each block of the contracted dimension), and the result is
// rounded once to out_dtype. a: [m, k], b: [n, k], both cast for dim 1, any strides: transpose()
// gives the other operands of a linear without a copy:
//   y = scaled_mm(x, w);  grad_x = scaled_mm(g, transpose(w));
//   grad_w = scaled_mm(transpose(g), transpose(x)), casts for dim 0.
// Granularities: each of tensorwise and axiswise with each other; blocks of 128 (1x128, 128x128)
// with each other; 1x32 with 1x32. bias: [n], undefined for none. out_dtype: bf16, fp16 or fp32.
// NaN and infinite scales reach every result they touch.
// use_fast_accum: a GPU may sum in its tensor cores' shorter accumulator (about 14 bits), which is
// faster; torchao does so in forward alone. A CPU takes no notice.
at::Tensor scaled_mm(const Float8TrainingTensor& a, const Float8TrainingTensor& b,
                     at::ScalarType out_dtype, const at::Tensor& bias = {},
                     bool use_fast_accum = false);

// out += A B^T, in out's dtype, one rounding: gradients summed over micro-batches. out: [m, n].
void scaled_mm_accumulate(const Float8TrainingTensor& a, const Float8TrainingTensor& b,
                          at::Tensor& out);

// Dequantized to fp32 and multiplied in fp32 (`emulate`): what tests compare with.
at::Tensor scaled_mm_reference(const Float8TrainingTensor& a, const Float8TrainingTensor& b,
                               at::ScalarType out_dtype, const at::Tensor& bias = {});

}  // namespace narrowgauge::float8

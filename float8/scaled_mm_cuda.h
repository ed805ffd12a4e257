#pragma once

#include <ATen/core/Tensor.h>

#include "float8/float8_training_tensor.h"

namespace narrowgauge::float8 {

// Whether the GPU's fp8 product takes this pair: both on a GPU of Hopper's or a later kind; scales
// tensorwise with at most one side e5m2; or, both e4m3, axiswise or whole blocks of 128 with at
// least one side 1x128.
bool has_cuda_scaled_mm(const Float8TrainingTensor& a, const Float8TrainingTensor& b);

// A B^T + bias in fp8 by cuBLASLt. bias: undefined, or [n] in out_dtype, which is then bf16 or fp16
// (see fuses_bias). Both operands are read row by row: one in another layout is copied
// first. Sizes that are no multiple of 16 are padded. use_fast_accum: sums within the tensor cores'
// shorter accumulator (about 14 bits) instead of fp32.
at::Tensor scaled_mm_cuda(const Float8TrainingTensor& a, const Float8TrainingTensor& b,
                          at::ScalarType out_dtype, const at::Tensor& bias, bool use_fast_accum);

// Whether the product adds such a bias itself, before it rounds.
bool fuses_bias(const Float8TrainingTensor& a, at::ScalarType out_dtype, const at::Tensor& bias);

}  // namespace narrowgauge::float8

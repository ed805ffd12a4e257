#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "float8/scaling.h"

namespace narrowgauge::float8 {

// A matrix in fp8: x ~ data * inverse_scale, each scale spread over its group (torchao's class of
// this name, without the tensor behaviour).
struct Float8TrainingTensor {
  at::Tensor data;  // [rows, cols] float8_e4m3fn or float8_e5m2, row- or column-major
  // What a code is multiplied with to get the value back, 1 / scale rounded to fp32: the argument
  // of torch._scaled_mm, DeepSeek's weight_scale_inv. fp32, or float8_e8m0fnu for kBlockwise1x32.
  // Shape: see ScalingGranularity.
  at::Tensor inverse_scale;
  ScalingGranularity granularity = ScalingGranularity::kTensorwise;
  int64_t dim = 1;                         // the dimension contracted: 1 or 0
  at::ScalarType orig_dtype = at::kFloat;  // of the matrix that was cast

  int64_t rows() const { return data.size(0); }
  int64_t cols() const { return data.size(1); }
  int64_t size_bytes() const { return data.nbytes() + inverse_scale.nbytes(); }
};

// The transposed matrix: views, no copy; `dim` changes sides.
Float8TrainingTensor transpose(const Float8TrainingTensor& x);

// data * inverse_scale in fp32, rounded once to dtype: [rows, cols], contiguous. The scale of an
// infinite amax is infinite, so zeros beside an infinity come back as NaN.
at::Tensor dequantize(const Float8TrainingTensor& x, at::ScalarType dtype);

// The same in ATen operators.
at::Tensor dequantize_reference(const Float8TrainingTensor& x, at::ScalarType dtype);

}  // namespace narrowgauge::float8

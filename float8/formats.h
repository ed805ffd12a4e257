#pragma once

#include <ATen/core/Tensor.h>

namespace narrowgauge::float8 {

// The 8-bit floating point formats (OCP 8-bit floating point specification, 2023; torch's names):
//   float8_e4m3fn  largest 448, no infinity, NaN is S.1111.111, smallest 2^-9
//   float8_e5m2    largest 57344, infinity and NaN as IEEE, smallest 2^-16
//   float8_e8m0fnu a power of two 2^(code - 127), NaN is 255: scales of MX blocks only
// Every value of the first two is a bf16.
bool is_float8(at::ScalarType dtype);  // float8_e4m3fn or float8_e5m2

// Largest finite value. Throws unless is_float8(dtype).
double float8_max(at::ScalarType dtype);

// x clamped to [-float8_max, float8_max] and rounded to nearest even; NaN stays NaN. A cast without
// the clamp gives NaN (e4m3) or infinity (e5m2) above the largest value. x: floating, any shape.
at::Tensor to_fp8_saturated(const at::Tensor& x, at::ScalarType dtype);

}  // namespace narrowgauge::float8

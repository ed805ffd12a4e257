#pragma once

#include <ATen/core/Tensor.h>

namespace narrowgauge::quantization {

// 4-bit floating point e2m1 (OCP microscaling formats 1.0): a sign bit (8) and 0, 0.5, 1, 1.5, 2,
// 3, 4, 6 for the codes 0 to 7.
inline constexpr double kE2m1Max = 6.0;

// fp32 to codes (uint8): round to nearest even, saturating; NaN gives a code of 0.
at::Tensor to_e2m1(const at::Tensor& x);

// Codes to fp32.
at::Tensor from_e2m1(const at::Tensor& codes);

}  // namespace narrowgauge::quantization

#pragma once

#include <ATen/core/Tensor.h>

namespace narrowgauge::nn {

// silu(gate) * up with silu(z) = z / (1 + exp(-z)) (Shazeer 2020).
// gate_up: [..., 2 * ffn] bf16 or fp32, gate first; returns [..., ffn] in its dtype, computed in
// fp32 with one rounding. Differentiable once; saves gate_up alone, backward recomputes silu.
at::Tensor swiglu(const at::Tensor& gate_up);

// The same in ATen operators: for tests, other devices and other dtypes.
at::Tensor swiglu_reference(const at::Tensor& gate_up);

}  // namespace narrowgauge::nn

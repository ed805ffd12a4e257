#pragma once

#include <ATen/core/Tensor.h>

namespace narrowgauge::nn {

// silu(gate) * up with silu(z) = z / (1 + exp(-z)) (Shazeer 2020).
// gate_up: [..., 2 * ffn] bf16 or fp32, gate first; returns [..., ffn] in its dtype, computed in
// fp32 with one rounding. Differentiable once; saves gate_up alone, backward recomputes silu.
// with_amax: on a GPU the largest magnitudes of the result, and of the gradient in backward, are
// handed on by nn/known_amax.h.
at::Tensor swiglu(const at::Tensor& gate_up, bool with_amax = false);

// The same in ATen operators: for tests, other devices and other dtypes.
at::Tensor swiglu_reference(const at::Tensor& gate_up);

}  // namespace narrowgauge::nn

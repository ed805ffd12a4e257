#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>

// Dropout (Srivastava et al. 2014) without a generator that has a state: whether an element is
// dropped is a pure function of (key, step, its index), from Philox4x32-10. Backward and a
// recomputed forward draw the mask again instead of keeping it, a resumed run needs no state, and
// CPU and GPU drop the same elements.

namespace narrowgauge::nn {

// The mask of a tensor whose first element is element first_element of the stream.
struct DropoutMask {
  double p = 0.0;  // share that is dropped, in [0, 1)
  uint64_t key = 0;
  int64_t step = 0;
  int64_t first_element = 0;
  // dropout(x) - x in place of dropout(x): zero on average, for a path that sees all of x already.
  bool is_difference = false;
};

// The key of the stream of that name in a run.
uint64_t dropout_key(uint64_t seed, std::string_view name);

// x / (1 - p) where the mask keeps it, else 0; without autograd. x: fp32 or bf16.
at::Tensor dropout(const at::Tensor& x, const DropoutMask& mask);

// linear(dropout(x), weight), differentiable once. Keeps x alone for backward, nothing of its size
// beside it. x: [..., in]; weight: [out, in].
at::Tensor dropout_linear(const at::Tensor& x, const at::Tensor& weight, const DropoutMask& mask);

}  // namespace narrowgauge::nn

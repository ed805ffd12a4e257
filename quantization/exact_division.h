#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/full.h>

namespace narrowgauge::quantization {

// x / divisor, rounded once, on every device: given a plain number ATen
// multiplies by its reciprocal on a GPU, which gives other bits. divisor: exact
// in x's dtype.
inline at::Tensor divided(const at::Tensor& x, double divisor) {
  return x.div(at::full({}, divisor, x.options().requires_grad(false)));
}

}  // namespace narrowgauge::quantization

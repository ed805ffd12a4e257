#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

namespace narrowgauge::nn {

// Root-mean-square norm of each row (Zhang and Sennrich 2019):
//   y = x * rstd * weight,  rstd = 1 / sqrt(mean(x^2) + eps)
// x: [..., dim] bf16 or fp32, any strides; weight: [dim], any floating dtype. Returns y in x's
// shape and dtype: all arithmetic is fp32 with one rounding at the end. A row with a NaN or an
// infinity gives a row with NaN; a row of zeros gives zeros (eps > 0).
//
// Differentiable once in x and weight; saves x, weight and rstd (one fp32 a row). weight's gradient
// is summed in fp32 over blocks of rows that depend on the shape alone, so it has the same bits
// whatever the number of threads.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

// h = residual + x, rounded to their dtype, and rms_norm(h, weight, eps), in one pass over memory.
// residual and x: [..., dim], same shape and dtype. Equal bit for bit to the two steps one after
// the other.
std::pair<at::Tensor, at::Tensor> add_rms_norm(const at::Tensor& residual, const at::Tensor& x,
                                               const at::Tensor& weight, double eps);

// The same formula in ATen operators, fp32 or fp64 inside: what tests compare with, and what other
// devices and dtypes run.
at::Tensor rms_norm_reference(const at::Tensor& x, const at::Tensor& weight, double eps);

}  // namespace narrowgauge::nn

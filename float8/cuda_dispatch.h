#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "float8/kernels/cast_cuda.h"

// What the functions of float8/ share when they call a kernel on a GPU: kernels know plain
// pointers, float for fp32 and uint16_t for bf16.
namespace narrowgauge::float8 {

// bf16 or fp32, not empty, on a GPU with fp8 instructions (Hopper or later).
inline bool has_cuda_kernel(const at::Tensor& x) {
  return x.is_cuda() && x.dim() == 2 && x.numel() > 0 &&
         (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16) &&
         kernels::has_float8_instructions();
}

// Calls body with x's elements. REQUIRES: has_cuda_kernel(x), x contiguous.
template <typename Body>
void with_cuda_elements(const at::Tensor& x, const Body& body) {
  if (x.scalar_type() == at::kFloat) {
    body(static_cast<const float*>(x.const_data_ptr()));
  } else {
    body(static_cast<const uint16_t*>(x.const_data_ptr()));
  }
}

}  // namespace narrowgauge::float8

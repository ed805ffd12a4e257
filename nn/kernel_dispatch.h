#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

// What the functions of nn/ share when they call a kernel: kernels know plain pointers, float for
// fp32 and uint16_t for bf16. Which device's kernel runs is decided by x.is_cuda() where it is
// called.
namespace narrowgauge::nn {

inline bool has_kernel(const at::Tensor& x) {
  return (x.is_cpu() || x.is_cuda()) &&
         (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
}

template <typename T>
const T* const_pointer(const at::Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <typename T>
T* mutable_pointer(const at::Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

// Calls body with a value of the kernel's element type for x. REQUIRES: has_kernel(x).
template <typename Body>
void with_element_type(const at::Tensor& x, const Body& body) {
  if (x.scalar_type() == at::kFloat) {
    body(float{});
  } else {
    body(uint16_t{});
  }
}

// Rows a thread must at least get for parallel_for to pay, when one row has row_size elements.
inline int64_t grain_rows(int64_t row_size) {
  constexpr int64_t kGrainElements = 1 << 14;
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, row_size));
}

}  // namespace narrowgauge::nn

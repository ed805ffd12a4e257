#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace narrowgauge::cuda {

inline constexpr int kWarpSize = 32;

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
  }
}

// To be called behind every launch: a launch itself reports nothing.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

template <typename T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// Whether rows of `row_size` elements that begin at these pointers can be read 16 bytes at a time.
template <typename T, typename... Rest>
bool is_vectorizable(int64_t row_size, const T* pointer, const Rest*... rest) {
  const auto is_aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return row_size * static_cast<int64_t>(sizeof(T)) % 16 == 0 && is_aligned(pointer) &&
         (is_aligned(rest) && ...);
}

}  // namespace narrowgauge::cuda

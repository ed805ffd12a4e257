#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/vector.cuh"

// Neighbours that move through memory together where they can, fp32 or bf16.
namespace narrowgauge::optim::kernels {

// The two elements that begin at `at`, of which `count` exist. paired: they can be read at once.
__device__ inline float2 read_pair(const void* data, bool is_bf16, int64_t at, int count,
                                   bool paired) {
  if (is_bf16) {
    const auto* from = static_cast<const uint16_t*>(data) + at;
    if (paired && count == 2) {
      const uint32_t both = *reinterpret_cast<const uint32_t*>(from);
      return {__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000U)};
    }
    return {count > 0 ? cuda::to_float(from[0]) : 0.0F, count > 1 ? cuda::to_float(from[1]) : 0.0F};
  }
  const auto* from = static_cast<const float*>(data) + at;
  if (paired && count == 2) {
    return *reinterpret_cast<const float2*>(from);
  }
  return {count > 0 ? from[0] : 0.0F, count > 1 ? from[1] : 0.0F};
}

template <typename T, typename Pair>
__device__ void write_pair(T* to, T first, T second, Pair both, int count, bool paired) {
  if (paired && count == 2) {
    *reinterpret_cast<Pair*>(to) = both;
    return;
  }
  if (count > 0) {
    to[0] = first;
  }
  if (count > 1) {
    to[1] = second;
  }
}

__device__ inline void write_pair_of_floats(void* data, bool is_bf16, int64_t at, uint32_t first,
                                            uint32_t second, int count, bool paired) {
  if (is_bf16) {  // the low halves
    write_pair(static_cast<uint16_t*>(data) + at, static_cast<uint16_t>(first),
               static_cast<uint16_t>(second), first | second << 16, count, paired);
  } else {
    write_pair(static_cast<uint32_t*>(data) + at, first, second, make_uint2(first, second), count,
               paired);
  }
}

}  // namespace narrowgauge::optim::kernels

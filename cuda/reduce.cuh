#pragma once

#include "cuda/launch.cuh"

// Reductions whose order depends on the shape of the block alone.
namespace narrowgauge::cuda {

struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
};

// A NaN on either side stays: fmaxf would drop it.
struct Max {
  __device__ float operator()(float a, float b) const { return a > b || a != a ? a : b; }
};

template <typename Op>
__device__ float reduce_warp(float value, Op op) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value = op(value, __shfl_xor_sync(0xffffffffU, value, offset));
  }
  return value;
}

// Over the threads of equal threadIdx.y; blockDim.x is a multiple of the warp size. Every thread
// gets the result. shared: [blockDim.y, blockDim.x / 32]; a block that reduces again must use other
// memory or synchronise in between.
template <typename Op>
__device__ float reduce_row(float value, float* shared, Op op) {
  value = reduce_warp(value, op);
  const int num_warps = blockDim.x / kWarpSize;
  if (num_warps == 1) {
    return value;
  }
  float* of_row = shared + threadIdx.y * num_warps;
  if (threadIdx.x % kWarpSize == 0) {
    of_row[threadIdx.x / kWarpSize] = value;
  }
  __syncthreads();
  value = of_row[0];
  for (int warp = 1; warp < num_warps; ++warp) {
    value = op(value, of_row[warp]);
  }
  return value;
}

}  // namespace narrowgauge::cuda

#pragma once

#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/vector.cuh"

// Magnitudes are compared as the bits of |x|: that order is exact, any order of blocks gives the
// same result, and NaN stands above infinity.
namespace narrowgauge::cuda {

__device__ inline uint32_t magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffffU; }

// What a warp found, into a number that others raise, too; its lanes agree on `bits`. An atomic
// operation on one address costs as much as reading kilobytes, and most find it high enough: look
// first. A value read too early is too low and costs only the operation.
__device__ inline void raise(uint32_t bits, float* amax) {
  auto* to = reinterpret_cast<unsigned*>(amax);
  if (threadIdx.x % kWarpSize == 0 && bits > __ldcg(to)) {
    atomicMax(to, bits);
  }
}

// The same for what the threads of a block found, each its own: one of them raises. All threads of
// the block call it, once. T: of the elements in memory. `bits` are those of values before they
// were rounded to T: rounding keeps their order, so that the largest rounded one is the rounded
// largest.
template <typename T, int kMaxThreads>
__device__ void raise_from_block(uint32_t bits, float* amax) {
  __shared__ uint32_t of_warps[kMaxThreads / kWarpSize];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const uint32_t of_warp = __reduce_max_sync(0xffffffffU, bits);
  if (lane == 0) {
    of_warps[warp] = of_warp;
  }
  __syncthreads();
  if (warp == 0) {
    const int num_warps = static_cast<int>(blockDim.x) / kWarpSize;
    const uint32_t of_block =
        __reduce_max_sync(0xffffffffU, lane < num_warps ? of_warps[lane] : 0U);
    raise(magnitude_bits(to_float(from_float<T>(__uint_as_float(of_block)))), amax);
  }
}

}  // namespace narrowgauge::cuda

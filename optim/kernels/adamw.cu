#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/vector.cuh"
#include "optim/kernels/adamw_cuda.h"

// Traffic: 28 bytes an element, 26 with gradients in bf16. The order of operations is adamw.cc's;
// -fmad=false keeps the compiler from fusing others, and division and square root are the exact
// ones.

namespace narrowgauge::optim::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kElementsPerBlock = int64_t{kThreads} * kAdamWLanes * 4;
// As many as fit into the 4 KiB of a kernel's arguments.
constexpr int kMaxTensors = 64;

struct Launch {
  AdamWTensor tensors[kMaxTensors];
  int first_block[kMaxTensors + 1];  // of each tensor; the last entry is the size of the grid
  int num_tensors;
  AdamWCoefficients coefficients;
};

template <bool kIsRemainder>
__device__ void update(float& param, float grad, float& exp_avg, float& exp_avg_sq,
                       const AdamWCoefficients& c, const AdamWTensor& t) {
  const float scaled = grad * c.gradient_scale;
  const float g = t.l2_decay != 0.0F ? __fmaf_rn(param, t.l2_decay, scaled) : scaled;
  const float p = param * t.decay;
  const float difference = g - exp_avg;
  const float m = c.grad_weight < 0.5F ? __fmaf_rn(c.grad_weight, difference, exp_avg)
                                       : __fmaf_rn(c.grad_weight - 1.0F, difference, g);
  const float weighted = c.grad_sq_weight * g;
  const float v = kIsRemainder ? __fmaf_rn(exp_avg_sq, c.beta2, weighted * g)
                               : __fmaf_rn(weighted, g, exp_avg_sq * c.beta2);
  const float denominator = __fsqrt_rn(v) / c.correction_sqrt + c.eps;
  exp_avg = m;
  exp_avg_sq = v;
  param = p + t.negative_step * m / denominator;
}

__device__ void load_gradient(const AdamWTensor& t, int64_t at, float (&g)[1]) {
  g[0] = t.is_grad_bf16 ? cuda::to_float(static_cast<const uint16_t*>(t.grad)[at])
                        : static_cast<const float*>(t.grad)[at];
}

__device__ void load_gradient(const AdamWTensor& t, int64_t at, float (&g)[4]) {
  if (!t.is_grad_bf16) {
    cuda::load(static_cast<const float*>(t.grad) + at, g);
    return;
  }
  const uint2 v = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(t.grad) + at);
  g[0] = __uint_as_float(v.x << 16);
  g[1] = __uint_as_float(v.x & 0xffff0000U);
  g[2] = __uint_as_float(v.y << 16);
  g[3] = __uint_as_float(v.y & 0xffff0000U);
}

template <int kWidth, bool kIsRemainder>
__device__ void update_at(const AdamWTensor& t, int64_t at, const AdamWCoefficients& c) {
  float p[kWidth];
  float g[kWidth];
  float m[kWidth];
  float v[kWidth];
  cuda::load(t.param + at, p);
  load_gradient(t, at, g);
  cuda::load(t.exp_avg + at, m);
  cuda::load(t.exp_avg_sq + at, v);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    update<kIsRemainder>(p[i], g[i], m[i], v[i], c, t);
  }
  cuda::store(t.param + at, p);
  cuda::store(t.exp_avg + at, m);
  cuda::store(t.exp_avg_sq + at, v);
}

__device__ bool is_aligned(const AdamWTensor& t) {
  const auto bits = reinterpret_cast<uintptr_t>(t.param) | reinterpret_cast<uintptr_t>(t.grad) |
                    reinterpret_cast<uintptr_t>(t.exp_avg) |
                    reinterpret_cast<uintptr_t>(t.exp_avg_sq);
  return bits % 16 == 0;
}

__global__ void __launch_bounds__(kThreads) adamw_kernel(const __grid_constant__ Launch launch) {
  int index = 0;  // the last tensor that begins at or before this block
  for (int step = kMaxTensors / 2; step > 0; step /= 2) {
    if (index + step < launch.num_tensors &&
        launch.first_block[index + step] <= static_cast<int>(blockIdx.x)) {
      index += step;
    }
  }
  const AdamWTensor& t = launch.tensors[index];
  const int64_t begin =
      int64_t{static_cast<int>(blockIdx.x) - launch.first_block[index]} * kElementsPerBlock;
  const int64_t body = t.count - t.count % kAdamWLanes;
  const int64_t end = min(begin + kElementsPerBlock, body);
  if (is_aligned(t)) {
    for (int64_t i = begin + threadIdx.x * 4; i < end; i += kThreads * 4) {
      update_at<4, false>(t, i, launch.coefficients);
    }
  } else {
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
      update_at<1, false>(t, i, launch.coefficients);
    }
  }
  if (begin + kElementsPerBlock >= t.count && body + threadIdx.x < t.count) {
    update_at<1, true>(t, body + threadIdx.x, launch.coefficients);
  }
}

}  // namespace

void adamw(std::span<const AdamWTensor> tensors, const AdamWCoefficients& coefficients,
           cuda::StreamHandle stream) {
  static_assert(sizeof(Launch) <= 4096);
  Launch launch{};
  launch.coefficients = coefficients;
  int64_t num_blocks = 0;
  const auto run = [&] {
    if (num_blocks > 0) {
      launch.first_block[launch.num_tensors] = static_cast<int>(num_blocks);
      adamw_kernel<<<static_cast<unsigned>(num_blocks), kThreads, 0, stream>>>(launch);
      cuda::check_launch("adamw");
    }
    launch.num_tensors = 0;
    num_blocks = 0;
  };
  for (const AdamWTensor& tensor : tensors) {
    if (tensor.count == 0) {
      continue;
    }
    if (launch.num_tensors == kMaxTensors) {
      run();
    }
    launch.tensors[launch.num_tensors] = tensor;
    launch.first_block[launch.num_tensors] = static_cast<int>(num_blocks);
    ++launch.num_tensors;
    num_blocks += cuda::ceil_div(tensor.count, kElementsPerBlock);
  }
  run();
}

}  // namespace narrowgauge::optim::kernels

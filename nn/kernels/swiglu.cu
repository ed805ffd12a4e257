#include "cuda/launch.cuh"
#include "cuda/magnitude.cuh"
#include "cuda/vector.cuh"
#include "nn/kernels/swiglu_cuda.h"

// Bytes an element of `out` in bf16: forward 6, backward 10.

namespace narrowgauge::nn::kernels {
namespace {

using cuda::ceil_div;
using cuda::kLanes;
using cuda::kWarpSize;
using cuda::load;
using cuda::magnitude_bits;
using cuda::raise_from_block;
using cuda::store;

constexpr int kMaxThreads = 256;
constexpr int64_t kRowsPerBlockWithAmax = 4;  // one of its threads looks at amax, after all rows

// Within 4 ulp; e^-x overflows to infinity below -88, which gives 0, the limit. (The fast division
// costs a fifth of the exact one, which would weigh as much as the memory.)
__device__ float sigmoid(float x) { return __fdividef(1.0F, 1.0F + expf(-x)); }

// One thread a vector of `out`; blockIdx.y counts rows in steps of gridDim.y.
template <typename T, int kWidth, bool kWithAmax>
__global__ void forward_kernel(const T* gate_up, T* out, int64_t rows, int64_t ffn, float* amax) {
  const int64_t column = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kWidth;
  uint32_t largest = 0;
  for (int64_t row = blockIdx.y; row < rows && column < ffn; row += gridDim.y) {
    float gate[kWidth];
    float up[kWidth];
    load(gate_up + 2 * row * ffn + column, gate);
    load(gate_up + (2 * row + 1) * ffn + column, up);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      up[i] = gate[i] * sigmoid(gate[i]) * up[i];
      largest = kWithAmax ? max(largest, magnitude_bits(up[i])) : 0;
    }
    store(out + row * ffn + column, up);
  }
  if constexpr (kWithAmax) {
    raise_from_block<T, kMaxThreads>(largest, amax);
  }
}

// d silu(g) / dg = s (1 + g (1 - s)), s = sigmoid(g).
template <typename T, int kWidth, bool kWithAmax>
__global__ void backward_kernel(const T* grad_out, const T* gate_up, T* grad_gate_up, int64_t rows,
                                int64_t ffn, float* amax) {
  const int64_t column = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kWidth;
  uint32_t largest = 0;
  for (int64_t row = blockIdx.y; row < rows && column < ffn; row += gridDim.y) {
    float gate[kWidth];
    float up[kWidth];
    float grad[kWidth];
    load(gate_up + 2 * row * ffn + column, gate);
    load(gate_up + (2 * row + 1) * ffn + column, up);
    load(grad_out + row * ffn + column, grad);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float g = gate[i];
      const float s = sigmoid(g);
      gate[i] = grad[i] * up[i] * (s * (1.0F + g * (1.0F - s)));
      up[i] = grad[i] * (g * s);
      largest = kWithAmax ? max(largest, max(magnitude_bits(gate[i]), magnitude_bits(up[i]))) : 0;
    }
    store(grad_gate_up + 2 * row * ffn + column, gate);
    store(grad_gate_up + (2 * row + 1) * ffn + column, up);
  }
  if constexpr (kWithAmax) {
    raise_from_block<T, kMaxThreads>(largest, amax);
  }
}

constexpr int64_t kMaxGridRows = 65535;

unsigned threads_of(int64_t vectors) {
  return static_cast<unsigned>(
      vectors < kMaxThreads ? ceil_div<int64_t>(vectors, kWarpSize) * kWarpSize : kMaxThreads);
}

dim3 grid_of(int64_t rows, int64_t vectors, int64_t rows_per_block) {
  const int64_t grid_rows = ceil_div<int64_t>(rows, rows_per_block);
  return {static_cast<unsigned>(ceil_div<int64_t>(vectors, threads_of(vectors))),
          static_cast<unsigned>(grid_rows < kMaxGridRows ? grid_rows : kMaxGridRows)};
}

void clear(float* amax, cudaStream_t stream) {
  cuda::check(cudaMemsetAsync(amax, 0, sizeof(float), stream), "swiglu");
}

template <typename T, int kWidth>
void run_forward(const T* gate_up, T* out, int64_t rows, int64_t ffn, float* amax,
                 cudaStream_t stream) {
  const int64_t vectors = ffn / kWidth;
  if (amax == nullptr) {
    forward_kernel<T, kWidth, false><<<grid_of(rows, vectors, 1), threads_of(vectors), 0, stream>>>(
        gate_up, out, rows, ffn, nullptr);
  } else {
    forward_kernel<T, kWidth, true>
        <<<grid_of(rows, vectors, kRowsPerBlockWithAmax), threads_of(vectors), 0, stream>>>(
            gate_up, out, rows, ffn, amax);
  }
}

template <typename T, int kWidth>
void run_backward(const T* grad_out, const T* gate_up, T* grad_gate_up, int64_t rows, int64_t ffn,
                  float* amax, cudaStream_t stream) {
  const int64_t vectors = ffn / kWidth;
  if (amax == nullptr) {
    backward_kernel<T, kWidth, false>
        <<<grid_of(rows, vectors, 1), threads_of(vectors), 0, stream>>>(
            grad_out, gate_up, grad_gate_up, rows, ffn, nullptr);
  } else {
    backward_kernel<T, kWidth, true>
        <<<grid_of(rows, vectors, kRowsPerBlockWithAmax), threads_of(vectors), 0, stream>>>(
            grad_out, gate_up, grad_gate_up, rows, ffn, amax);
  }
}

}  // namespace

template <typename T>
void swiglu(const T* gate_up, T* out, int64_t rows, int64_t ffn, float* amax,
            cuda::StreamHandle stream) {
  if (amax != nullptr) {
    clear(amax, stream);
  }
  if (rows == 0) {
    return;
  }
  if (cuda::is_vectorizable(ffn, gate_up, out)) {
    run_forward<T, kLanes<T>>(gate_up, out, rows, ffn, amax, stream);
  } else {
    run_forward<T, 1>(gate_up, out, rows, ffn, amax, stream);
  }
  cuda::check_launch("swiglu");
}

template <typename T>
void swiglu_backward(const T* grad_out, const T* gate_up, T* grad_gate_up, int64_t rows,
                     int64_t ffn, float* amax, cuda::StreamHandle stream) {
  if (amax != nullptr) {
    clear(amax, stream);
  }
  if (rows == 0) {
    return;
  }
  if (cuda::is_vectorizable(ffn, grad_out, gate_up, grad_gate_up)) {
    run_backward<T, kLanes<T>>(grad_out, gate_up, grad_gate_up, rows, ffn, amax, stream);
  } else {
    run_backward<T, 1>(grad_out, gate_up, grad_gate_up, rows, ffn, amax, stream);
  }
  cuda::check_launch("swiglu_backward");
}

#define NG_INSTANTIATE(T)                                                           \
  template void swiglu(const T*, T*, int64_t, int64_t, float*, cuda::StreamHandle); \
  template void swiglu_backward(const T*, const T*, T*, int64_t, int64_t, float*,   \
                                cuda::StreamHandle);
NG_INSTANTIATE(float)
NG_INSTANTIATE(uint16_t)
#undef NG_INSTANTIATE

}  // namespace narrowgauge::nn::kernels

#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"
#include "nn/kernels/cross_entropy_cuda.h"

// A block a row. Bytes a logit in bf16: forward 2, backward 4. Forward reads a row once: each
// thread keeps the largest logit of its part so far and the sum relative to it, and the parts are
// joined.

namespace narrowgauge::nn::kernels {
namespace {

using cuda::ceil_div;
using cuda::kLanes;
using cuda::kWarpSize;
using cuda::load;
using cuda::store;

constexpr int kMaxThreads = 1024;
constexpr int kForwardThreads = 512;

// sum = sum of exp(logit - largest). Nothing seen yet, or only -inf: largest -inf, sum 0.
struct Part {
  float largest;
  float sum;
};

// What exponents are relative to: 0 stands in where all is -inf, so that e^(-inf - ...) is 0 there,
// too.
__device__ float base_of(float largest) { return largest == -INFINITY ? 0.0F : largest; }

// A NaN is passed over by fmaxf and reaches the sum.
template <int kWidth>
__device__ float largest_of(const float (&v)[kWidth], float largest) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    largest = fmaxf(largest, v[i]);
  }
  return largest;
}

template <int kWidth>
__device__ float sum_of_exp(const float (&v)[kWidth], float base) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    sum += __expf(v[i] - base);
  }
  return sum;
}

// Joins kVectors vectors of a row to what was seen before, all loads first.
template <typename T, int kWidth, int kVectors>
__device__ void add(Part& part, const T* first, int64_t stride) {
  float v[kVectors][kWidth];
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    load(first + k * stride, v[k]);
  }
  float largest = part.largest;
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    largest = largest_of(v[k], largest);
  }
  const float base = base_of(largest);
  float sum = part.sum * __expf(part.largest - base);
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    sum += sum_of_exp(v[k], base);
  }
  part = {largest, sum};
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kForwardThreads, 2)
    forward_kernel(const T* logits, const int64_t* targets, float* log_sum_exp, float* loss,
                   int64_t vocab, int64_t ignore_index) {
  __shared__ float shared[2][kForwardThreads / kWarpSize];
  const int64_t row = blockIdx.x;
  const int64_t target = targets[row];
  if (target == ignore_index) {
    if (threadIdx.x == 0) {
      log_sum_exp[row] = 0;
      loss[row] = 0;
    }
    return;
  }
  const T* of_row = logits + row * vocab;
  Part part{-INFINITY, 0.0F};
  constexpr int kVectors = 4;
  const int64_t stride = int64_t{blockDim.x} * kWidth;
  int64_t i = int64_t{threadIdx.x} * kWidth;
  for (; i + (kVectors - 1) * stride < vocab; i += kVectors * stride) {
    add<T, kWidth, kVectors>(part, of_row + i, stride);
  }
  for (; i < vocab; i += stride) {
    add<T, kWidth, 1>(part, of_row + i, stride);
  }
  const float largest =
      cuda::reduce_row(part.largest, shared[0], [](float a, float b) { return fmaxf(a, b); });
  const float sum =
      cuda::reduce_row(part.sum * __expf(part.largest - base_of(largest)), shared[1], cuda::Sum{});
  if (threadIdx.x == 0) {
    const bool is_valid = target >= 0 && target < vocab;
    const float log_sum = logf(sum);
    log_sum_exp[row] = largest + log_sum;
    // Two parts, so that the loss of a likely target does not cancel.
    loss[row] =
        is_valid ? log_sum + (largest - cuda::to_float(of_row[is_valid ? target : 0])) : NAN;
  }
}

__global__ void sum_kernel(const float* values, float* out, int64_t count) {
  __shared__ double shared[kMaxThreads];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kMaxThreads) {
    sum += values[i];
  }
  shared[threadIdx.x] = sum;
  for (int half = kMaxThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      shared[threadIdx.x] += shared[threadIdx.x + half];
    }
  }
  if (threadIdx.x == 0) {
    *out = static_cast<float>(shared[0]);
  }
}

// Part blockIdx.y of row blockIdx.x. In place, too: a thread reads before it writes, and only its
// own.
template <typename T, int kWidth>
__global__ void backward_kernel(const T* logits, const int64_t* targets, const float* log_sum_exp,
                                const float* grad_loss, T* grad_logits, int64_t vocab,
                                int64_t ignore_index) {
  const int64_t row = blockIdx.x;
  const int64_t first = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kWidth;
  const int64_t stride = int64_t{gridDim.y} * blockDim.x * kWidth;
  const int64_t target = targets[row];
  const bool is_ignored = target == ignore_index;
  const bool is_valid = target >= 0 && target < vocab;
  const float scale = is_valid ? *grad_loss : NAN;
  const float lse = log_sum_exp[row];
  for (int64_t i = first; i < vocab; i += stride) {
    float v[kWidth];
    load(logits + row * vocab + i, v);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const float probability = __expf(v[k] - lse);
      v[k] = is_ignored ? 0.0F : (probability - (i + k == target ? 1.0F : 0.0F)) * scale;
    }
    store(grad_logits + row * vocab + i, v);
  }
}

unsigned threads_of(int64_t vectors) {
  const int64_t per_thread = 4;
  const int64_t threads = ceil_div<int64_t>(ceil_div(vectors, per_thread), kWarpSize) * kWarpSize;
  return static_cast<unsigned>(std::min<int64_t>(threads, kForwardThreads));
}

}  // namespace

template <typename T>
void cross_entropy(const T* logits, const int64_t* targets, float* log_sum_exp, float* loss,
                   int64_t rows, int64_t vocab, int64_t ignore_index, cuda::StreamHandle stream) {
  if (rows == 0) {
    return;
  }
  constexpr int kWidth = kLanes<T>;
  const auto grid = static_cast<unsigned>(rows);
  if (cuda::is_vectorizable(vocab, logits)) {
    forward_kernel<T, kWidth><<<grid, threads_of(vocab / kWidth), 0, stream>>>(
        logits, targets, log_sum_exp, loss, vocab, ignore_index);
  } else {
    forward_kernel<T, 1><<<grid, threads_of(vocab), 0, stream>>>(logits, targets, log_sum_exp, loss,
                                                                 vocab, ignore_index);
  }
  cuda::check_launch("cross_entropy");
}

void sum_loss(const float* loss, float* out, int64_t rows, cuda::StreamHandle stream) {
  sum_kernel<<<1, kMaxThreads, 0, stream>>>(loss, out, rows);
  cuda::check_launch("sum_loss");
}

template <typename T>
void cross_entropy_backward(const T* logits, const int64_t* targets, const float* log_sum_exp,
                            const float* grad_loss, T* grad_logits, int64_t rows, int64_t vocab,
                            int64_t ignore_index, cuda::StreamHandle stream) {
  if (rows == 0) {
    return;
  }
  constexpr int kWidth = kLanes<T>;
  constexpr int kThreads = 256;
  constexpr int64_t kVectorsPerThread = 4;
  const auto launch = [&](auto kernel, int width) {
    const int64_t parts = ceil_div<int64_t>(vocab, width * kThreads * kVectorsPerThread);
    const dim3 grid(static_cast<unsigned>(rows),
                    static_cast<unsigned>(std::min<int64_t>(parts, 65535)));
    kernel<<<grid, kThreads, 0, stream>>>(logits, targets, log_sum_exp, grad_loss, grad_logits,
                                          vocab, ignore_index);
  };
  if (cuda::is_vectorizable(vocab, logits, grad_logits)) {
    launch(backward_kernel<T, kWidth>, kWidth);
  } else {
    launch(backward_kernel<T, 1>, 1);
  }
  cuda::check_launch("cross_entropy_backward");
}

#define NG_INSTANTIATE(T)                                                                          \
  template void cross_entropy(const T*, const int64_t*, float*, float*, int64_t, int64_t, int64_t, \
                              cuda::StreamHandle);                                                 \
  template void cross_entropy_backward(const T*, const int64_t*, const float*, const float*, T*,   \
                                       int64_t, int64_t, int64_t, cuda::StreamHandle);
NG_INSTANTIATE(float)
NG_INSTANTIATE(uint16_t)
#undef NG_INSTANTIATE

}  // namespace narrowgauge::nn::kernels

#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"
#include "nn/kernels/rms_norm_cuda.h"

// A row belongs to blockDim.x threads and, where it fits, stays in their registers between the sum
// and the scaling, so memory is read once. Bytes an element in bf16: forward 4, with addition 8,
// backward 6 (8 with grad_h).

namespace narrowgauge::nn::kernels {
namespace {

using cuda::ceil_div;
using cuda::kLanes;
using cuda::kWarpSize;
using cuda::load;
using cuda::store;

constexpr int kThreads = 256;  // of a block, unless a row asks for more
constexpr int kMaxThreads = 1024;
constexpr int kBackwardThreads = 512;  // at most: leaves each thread 128 registers
constexpr int kSharedFloats = 2 * kMaxThreads / kWarpSize;

template <typename T>
struct ForwardArguments {
  const T* residual;  // null without addition
  const T* x;
  const float* weight;
  T* h;
  T* y;
  float* rstd;
  int64_t rows;
  int64_t dim;
  float eps;
};

// x of one vector; with a residual their rounded sum, which is also written to h.
template <typename T, int kWidth, bool kAdd>
__device__ void load_input(const ForwardArguments<T>& a, int64_t at, float (&v)[kWidth]) {
  load(a.x + at, v);
  if constexpr (kAdd) {
    float r[kWidth];
    load(a.residual + at, r);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      v[i] = cuda::rounded<T>(v[i] + r[i]);
    }
    store(a.h + at, v);
  }
}

template <typename T, int kWidth>
__device__ void scale_and_store(const ForwardArguments<T>& a, int64_t row, int64_t column,
                                float rstd, float (&v)[kWidth]) {
  float w[kWidth];
  load(a.weight + column, w);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    v[i] = v[i] * rstd * w[i];
  }
  store(a.y + row * a.dim + column, v);
}

template <int kWidth>
__device__ float sum_of_squares(const float (&v)[kWidth]) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    sum += v[i] * v[i];
  }
  return sum;
}

// kVectors: of a thread, held in registers. 0: a row does not fit, its threads read it twice.
template <typename T, int kWidth, int kVectors, bool kAdd>
__global__ void forward_kernel(ForwardArguments<T> a) {
  __shared__ float shared[kSharedFloats];
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const int64_t begin = row * a.dim;
  const bool is_row = row < a.rows;
  const int64_t first = int64_t{threadIdx.x} * kWidth;
  const int64_t stride = int64_t{blockDim.x} * kWidth;
  float sum = 0;
  if constexpr (kVectors > 0) {
    float v[kVectors][kWidth];
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int64_t column = first + k * stride;
      if (is_row && column < a.dim) {
        load_input<T, kWidth, kAdd>(a, begin + column, v[k]);
        sum += sum_of_squares(v[k]);
      }
    }
    sum = cuda::reduce_row(sum, shared, cuda::Sum{});
    const float rstd = 1.0F / sqrtf(sum / static_cast<float>(a.dim) + a.eps);
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int64_t column = first + k * stride;
      if (is_row && column < a.dim) {
        scale_and_store<T, kWidth>(a, row, column, rstd, v[k]);
      }
    }
    if (is_row && threadIdx.x == 0) {
      a.rstd[row] = rstd;
    }
  } else {
    float v[kWidth];
    for (int64_t column = first; is_row && column < a.dim; column += stride) {
      load_input<T, kWidth, kAdd>(a, begin + column, v);
      sum += sum_of_squares(v);
    }
    sum = cuda::reduce_row(sum, shared, cuda::Sum{});
    const float rstd = 1.0F / sqrtf(sum / static_cast<float>(a.dim) + a.eps);
    const T* input = kAdd ? a.h : a.x;
    for (int64_t column = first; is_row && column < a.dim; column += stride) {
      load(input + begin + column, v);  // each thread its own writes
      scale_and_store<T, kWidth>(a, row, column, rstd, v);
    }
    if (is_row && threadIdx.x == 0) {
      a.rstd[row] = rstd;
    }
  }
}

// Threads of a row x rows of a block, for rows of `vectors` vectors, kVectors a thread.
dim3 block_of(int64_t vectors, int vectors_per_thread) {
  const int64_t threads = ceil_div<int64_t>(vectors, vectors_per_thread);
  const auto x = static_cast<unsigned>(
      std::min<int64_t>(kMaxThreads, ceil_div<int64_t>(threads, kWarpSize) * kWarpSize));
  return {x, std::max(1U, kThreads / x)};
}

template <typename T, bool kAdd>
void forward(const ForwardArguments<T>& a, cudaStream_t stream) {
  if (a.rows == 0) {
    return;
  }
  constexpr int kWidth = kLanes<T>;
  const bool vectorizable = cuda::is_vectorizable(a.dim, a.x, a.y, a.weight) &&
                            (!kAdd || cuda::is_vectorizable(a.dim, a.residual, a.h));
  const int64_t vectors = a.dim / kWidth;
  const auto launch = [&](auto kernel, dim3 block) {
    const auto grid = static_cast<unsigned>(ceil_div<int64_t>(a.rows, block.y));
    kernel<<<grid, block, 0, stream>>>(a);
  };
  if (vectorizable && vectors <= 2 * kThreads) {
    launch(forward_kernel<T, kWidth, 2, kAdd>, block_of(vectors, 2));
  } else if (vectorizable && vectors <= 4 * kMaxThreads) {
    launch(forward_kernel<T, kWidth, 4, kAdd>, block_of(vectors, 4));
  } else {
    launch(forward_kernel<T, 1, 0, kAdd>, block_of(a.dim, 4));
  }
  cuda::check_launch("rms_norm");
}

template <typename T>
struct BackwardArguments {
  const T* grad_y;
  const T* grad_h;  // null if nothing else flows into x
  const T* x;
  const float* weight;
  const float* rstd;
  T* grad_x;
  float* partial;
  int64_t rows;
  int64_t dim;
};

// Of a vector of a row: sum of grad_y weight x.
template <int kWidth>
__device__ float dot_of(const float (&gy)[kWidth], const float (&x)[kWidth],
                        const float (&w)[kWidth]) {
  float dot = 0;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    dot += gy[i] * w[i] * x[i];
  }
  return dot;
}

// grad_x of a vector, and its part of grad_weight.
template <typename T, int kWidth>
__device__ void finish(const BackwardArguments<T>& a, int64_t at, float rstd, float mean,
                       const float (&gy)[kWidth], const float (&x)[kWidth],
                       const float (&w)[kWidth], float (&grad_weight)[kWidth]) {
  float grad[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    grad[i] = rstd * (gy[i] * w[i] - x[i] * mean);
    grad_weight[i] += gy[i] * (x[i] * rstd);
  }
  if (a.grad_h != nullptr) {
    float gh[kWidth];
    load(a.grad_h + at, gh);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      grad[i] += gh[i];
    }
  }
  store(a.grad_x + at, grad);
}

// Block b takes rows b, b + gridDim.x, ... one after another and keeps its part of grad_weight in
// registers.
template <typename T, int kWidth, int kVectors>
__global__ void __launch_bounds__(kBackwardThreads) backward_kernel(BackwardArguments<T> a) {
  __shared__ float shared[2][kMaxThreads / kWarpSize];
  const int64_t first = int64_t{threadIdx.x} * kWidth;
  const int64_t stride = int64_t{blockDim.x} * kWidth;
  float grad_weight[kVectors][kWidth] = {};
  int parity = 0;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x, parity ^= 1) {
    const int64_t begin = row * a.dim;
    const float rstd = a.rstd[row];
    float gy[kVectors][kWidth];
    float x[kVectors][kWidth];
    float dot = 0;
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int64_t column = first + k * stride;
      if (column < a.dim) {
        load(a.grad_y + begin + column, gy[k]);
        load(a.x + begin + column, x[k]);
      }
    }
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int64_t column = first + k * stride;
      if (column < a.dim) {
        float w[kWidth];
        load(a.weight + column, w);
        dot += dot_of(gy[k], x[k], w);
      }
    }
    dot = cuda::reduce_row(dot, shared[parity], cuda::Sum{});
    const float mean = dot * rstd * rstd / static_cast<float>(a.dim);
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int64_t column = first + k * stride;
      if (column < a.dim) {
        float w[kWidth];
        load(a.weight + column, w);
        finish<T, kWidth>(a, begin + column, rstd, mean, gy[k], x[k], w, grad_weight[k]);
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int64_t column = first + k * stride;
    if (column < a.dim) {
      store(a.partial + blockIdx.x * a.dim + column, grad_weight[k]);
    }
  }
}

// The same for rows of any length: grad_weight's part lies in `partial`, each thread its columns.
template <typename T>
__global__ void backward_long_kernel(BackwardArguments<T> a) {
  __shared__ float shared[2][kMaxThreads / kWarpSize];
  float* partial = a.partial + blockIdx.x * a.dim;
  for (int64_t i = threadIdx.x; i < a.dim; i += blockDim.x) {
    partial[i] = 0;
  }
  int parity = 0;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x, parity ^= 1) {
    const int64_t begin = row * a.dim;
    const float rstd = a.rstd[row];
    float gy[1];
    float x[1];
    float dot = 0;
    for (int64_t i = threadIdx.x; i < a.dim; i += blockDim.x) {
      load(a.grad_y + begin + i, gy);
      load(a.x + begin + i, x);
      dot += gy[0] * a.weight[i] * x[0];
    }
    dot = cuda::reduce_row(dot, shared[parity], cuda::Sum{});
    const float mean = dot * rstd * rstd / static_cast<float>(a.dim);
    for (int64_t i = threadIdx.x; i < a.dim; i += blockDim.x) {
      load(a.grad_y + begin + i, gy);
      load(a.x + begin + i, x);
      const float w[1] = {a.weight[i]};
      float grad_weight[1] = {partial[i]};
      finish<T, 1>(a, begin + i, rstd, mean, gy, x, w, grad_weight);
      partial[i] = grad_weight[0];
    }
  }
}

constexpr int kColumnsPerBlock = 32;
constexpr int kRowGroups = 32;

// out[column] = sum over rows of partial, in the order of rows within each of kRowGroups groups.
__global__ void sum_columns_kernel(const float* partial, float* out, int64_t rows, int64_t dim) {
  __shared__ float shared[kRowGroups][kColumnsPerBlock];
  const int64_t column = int64_t{blockIdx.x} * kColumnsPerBlock + threadIdx.x;
  float sum = 0;
#pragma unroll 4
  for (int64_t row = threadIdx.y; column < dim && row < rows; row += kRowGroups) {
    sum += partial[row * dim + column];
  }
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < dim) {
    for (int group = 1; group < kRowGroups; ++group) {
      sum += shared[group][threadIdx.x];
    }
    out[column] = sum;
  }
}

}  // namespace

template <typename T>
void rms_norm(const T* x, const float* weight, T* y, float* rstd, int64_t rows, int64_t dim,
              float eps, cuda::StreamHandle stream) {
  forward<T, false>({nullptr, x, weight, nullptr, y, rstd, rows, dim, eps}, stream);
}

template <typename T>
void add_rms_norm(const T* residual, const T* x, const float* weight, T* h, T* y, float* rstd,
                  int64_t rows, int64_t dim, float eps, cuda::StreamHandle stream) {
  forward<T, true>({residual, x, weight, h, y, rstd, rows, dim, eps}, stream);
}

// Enough threads for the multiprocessors of a large GPU, whose number is no part of the result:
// blocks of short rows are small, so there are more of them. Yet more blocks would make
// grad_weight's partial sums weigh too much beside the rows.
int64_t rms_norm_backward_blocks(int64_t rows, int64_t dim) {
  constexpr int64_t kFewest = 528;
  constexpr int64_t kMost = 2112;
  constexpr int64_t kElements = kFewest * 2048;
  return std::min(rows, std::clamp(kElements / dim, kFewest, kMost));
}

template <typename T>
void rms_norm_backward(const T* grad_y, const T* grad_h, const T* x, const float* weight,
                       const float* rstd, T* grad_x, float* grad_weight, float* partial,
                       int64_t rows, int64_t dim, cuda::StreamHandle stream) {
  constexpr int kWidth = kLanes<T>;
  const BackwardArguments<T> a{grad_y, grad_h, x, weight, rstd, grad_x, partial, rows, dim};
  const int64_t num_blocks = rms_norm_backward_blocks(rows, dim);
  const auto grid = static_cast<unsigned>(num_blocks);
  const bool vectorizable = cuda::is_vectorizable(dim, grad_y, x, grad_x, weight, partial) &&
                            (grad_h == nullptr || cuda::is_vectorizable(dim, grad_h));
  const int64_t vectors = dim / kWidth;
  if (rows > 0) {
    if (vectorizable && vectors <= kThreads) {
      backward_kernel<T, kWidth, 1><<<grid, block_of(vectors, 1).x, 0, stream>>>(a);
    } else if (vectorizable && vectors <= 2 * kBackwardThreads) {
      backward_kernel<T, kWidth, 2><<<grid, block_of(vectors, 2).x, 0, stream>>>(a);
    } else if (vectorizable && vectors <= 4 * kBackwardThreads) {
      backward_kernel<T, kWidth, 4><<<grid, block_of(vectors, 4).x, 0, stream>>>(a);
    } else {
      backward_long_kernel<T><<<grid, block_of(dim, 4).x, 0, stream>>>(a);
    }
    cuda::check_launch("rms_norm_backward");
  }
  const auto columns = static_cast<unsigned>(ceil_div<int64_t>(dim, kColumnsPerBlock));
  sum_columns_kernel<<<columns, dim3(kColumnsPerBlock, kRowGroups), 0, stream>>>(
      partial, grad_weight, num_blocks, dim);
  cuda::check_launch("rms_norm_backward, grad_weight");
}

#define NG_INSTANTIATE(T)                                                                        \
  template void rms_norm(const T*, const float*, T*, float*, int64_t, int64_t, float,            \
                         cuda::StreamHandle);                                                    \
  template void add_rms_norm(const T*, const T*, const float*, T*, T*, float*, int64_t, int64_t, \
                             float, cuda::StreamHandle);                                         \
  template void rms_norm_backward(const T*, const T*, const T*, const float*, const float*, T*,  \
                                  float*, float*, int64_t, int64_t, cuda::StreamHandle);
NG_INSTANTIATE(float)
NG_INSTANTIATE(uint16_t)
#undef NG_INSTANTIATE

}  // namespace narrowgauge::nn::kernels

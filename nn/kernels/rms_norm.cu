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

// One row's vectors of a thread as they lie in memory.
template <int kVectors>
struct RowVectors {
  uint4 grad_y[kVectors];
  uint4 x[kVectors];
  uint4 grad_h[kVectors];
};

template <typename T, int kVectors, bool kHasGradH>
__device__ void load_row(const BackwardArguments<T>& a, int64_t row, RowVectors<kVectors>& to) {
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int64_t column = (threadIdx.x + int64_t{k} * blockDim.x) * kLanes<T>;
    if (row < a.rows && column < a.dim) {
      const int64_t at = row * a.dim + column;
      to.grad_y[k] = *reinterpret_cast<const uint4*>(a.grad_y + at);
      to.x[k] = *reinterpret_cast<const uint4*>(a.x + at);
      if constexpr (kHasGradH) {
        to.grad_h[k] = *reinterpret_cast<const uint4*>(a.grad_h + at);
      }
    }
  }
}

template <typename T>
__device__ void unpack(const uint4& from, float (&to)[kLanes<T>]) {
  load(reinterpret_cast<const T*>(&from), to);
}

// Sum over a thread's vectors of grad_y weight x.
template <typename T, int kVectors>
__device__ float dot_of(const RowVectors<kVectors>& row, const float* weight, int64_t dim) {
  float dot = 0;
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int64_t column = (threadIdx.x + int64_t{k} * blockDim.x) * kLanes<T>;
    if (column < dim) {
      float gy[kLanes<T>];
      float x[kLanes<T>];
      float w[kLanes<T>];
      unpack<T>(row.grad_y[k], gy);
      unpack<T>(row.x[k], x);
      load(weight + column, w);
#pragma unroll
      for (int i = 0; i < kLanes<T>; ++i) {
        dot += gy[i] * w[i] * x[i];
      }
    }
  }
  return dot;
}

// grad_x of vector k of a row, and its part of grad_weight.
template <typename T, int kVectors, bool kHasGradH>
__device__ void finish(const BackwardArguments<T>& a, int64_t at, const float* weight,
                       const RowVectors<kVectors>& row, int k, float rstd, float mean,
                       float (&grad_weight)[kLanes<T>]) {
  float gy[kLanes<T>];
  float x[kLanes<T>];
  float w[kLanes<T>];
  float gh[kLanes<T>] = {};
  unpack<T>(row.grad_y[k], gy);
  unpack<T>(row.x[k], x);
  load(weight, w);
  if constexpr (kHasGradH) {
    unpack<T>(row.grad_h[k], gh);
  }
#pragma unroll
  for (int i = 0; i < kLanes<T>; ++i) {
    grad_weight[i] += gy[i] * (x[i] * rstd);
    gh[i] += rstd * (gy[i] * w[i] - x[i] * mean);
  }
  store(a.grad_x + at, gh);
}

// blockDim.y rows at a time, those of block b being b, b + gridDim.x, ... of such groups; the next
// group is on its way while one is worked on. Each thread keeps its part of grad_weight in
// registers; the rows of a block join them in `shared` ([blockDim.y, dim], empty for one row).
template <typename T, int kVectors, bool kHasGradH>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(BackwardArguments<T> a) {
  constexpr int kWidth = kLanes<T>;
  __shared__ float warp_sums[2][kThreads / kWarpSize];
  extern __shared__ __align__(16) float shared[];
  const int64_t group_rows = blockDim.y;
  const int64_t stride = gridDim.x * group_rows;
  float grad_weight[kVectors][kWidth] = {};
  RowVectors<kVectors> next;
  load_row<T, kVectors, kHasGradH>(a, blockIdx.x * group_rows + threadIdx.y, next);
  int parity = 0;
  for (int64_t group = blockIdx.x * group_rows; group < a.rows; group += stride, parity ^= 1) {
    const int64_t row = group + threadIdx.y;
    const RowVectors<kVectors> current = next;
    load_row<T, kVectors, kHasGradH>(a, row + stride, next);
    const bool is_row = row < a.rows;
    float dot = is_row ? dot_of<T>(current, a.weight, a.dim) : 0.0F;
    dot = cuda::reduce_row(dot, warp_sums[parity], cuda::Sum{});
    if (!is_row) {
      continue;  // the last group
    }
    const float rstd = a.rstd[row];
    const float mean = dot * rstd * rstd / static_cast<float>(a.dim);
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int64_t column = (threadIdx.x + int64_t{k} * blockDim.x) * kWidth;
      if (column < a.dim) {
        finish<T, kVectors, kHasGradH>(a, row * a.dim + column, a.weight + column, current, k, rstd,
                                       mean, grad_weight[k]);
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int64_t column = (threadIdx.x + int64_t{k} * blockDim.x) * kWidth;
    if (column < a.dim) {
      store((blockDim.y == 1 ? a.partial + blockIdx.x * a.dim : shared + threadIdx.y * a.dim) +
                column,
            grad_weight[k]);
    }
  }
  if (blockDim.y > 1) {
    __syncthreads();
    for (int64_t i = threadIdx.y * blockDim.x + threadIdx.x; i < a.dim;
         i += int64_t{blockDim.x} * blockDim.y) {
      float sum = shared[i];
      for (unsigned y = 1; y < blockDim.y; ++y) {
        sum += shared[y * a.dim + i];
      }
      a.partial[blockIdx.x * a.dim + i] = sum;
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
    float dot = 0;
    for (int64_t i = threadIdx.x; i < a.dim; i += blockDim.x) {
      dot += cuda::to_float(a.grad_y[begin + i]) * a.weight[i] * cuda::to_float(a.x[begin + i]);
    }
    dot = cuda::reduce_row(dot, shared[parity], cuda::Sum{});
    const float mean = dot * rstd * rstd / static_cast<float>(a.dim);
    for (int64_t i = threadIdx.x; i < a.dim; i += blockDim.x) {
      const float gy = cuda::to_float(a.grad_y[begin + i]);
      const float x = cuda::to_float(a.x[begin + i]);
      const float gh = a.grad_h == nullptr ? 0.0F : cuda::to_float(a.grad_h[begin + i]);
      a.grad_x[begin + i] = cuda::from_float<T>(gh + rstd * (gy * a.weight[i] - x * mean));
      partial[i] += gy * (x * rstd);
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

// Two blocks for each multiprocessor of a large GPU (as many as fit, see __launch_bounds__). The
// number is fixed: it decides in which order grad_weight is summed.
int64_t rms_norm_backward_blocks(int64_t rows) { return std::min<int64_t>(rows, 264); }

namespace {

template <typename T, bool kHasGradH>
void launch_backward(const BackwardArguments<T>& a, unsigned grid, cudaStream_t stream) {
  const int64_t vectors = a.dim / kLanes<T>;
  const bool vectorizable =
      cuda::is_vectorizable(a.dim, a.grad_y, a.x, a.grad_x, a.weight, a.partial, a.grad_h);
  const auto launch = [&](auto kernel, dim3 block) {
    const size_t shared = block.y == 1 ? 0 : block.y * static_cast<size_t>(a.dim) * sizeof(float);
    kernel<<<grid, block, shared, stream>>>(a);
  };
  if (vectorizable && vectors <= kWarpSize) {
    launch(backward_kernel<T, 1, kHasGradH>, block_of(vectors, 1));
  } else if (vectorizable && vectors <= 2 * kThreads) {
    launch(backward_kernel<T, 2, kHasGradH>, block_of(vectors, 2));
  } else if (vectorizable && vectors <= 4 * kThreads) {
    launch(backward_kernel<T, 4, kHasGradH>, block_of(vectors, 4));
  } else {
    backward_long_kernel<T><<<grid, block_of(a.dim, 4).x, 0, stream>>>(a);
  }
  cuda::check_launch("rms_norm_backward");
}

}  // namespace

template <typename T>
void rms_norm_backward(const T* grad_y, const T* grad_h, const T* x, const float* weight,
                       const float* rstd, T* grad_x, float* grad_weight, float* partial,
                       int64_t rows, int64_t dim, cuda::StreamHandle stream) {
  const BackwardArguments<T> a{grad_y, grad_h, x, weight, rstd, grad_x, partial, rows, dim};
  const int64_t num_blocks = rms_norm_backward_blocks(rows);
  const auto grid = static_cast<unsigned>(num_blocks);
  if (rows > 0 && grad_h != nullptr) {
    launch_backward<T, true>(a, grid, stream);
  } else if (rows > 0) {
    launch_backward<T, false>(a, grid, stream);
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

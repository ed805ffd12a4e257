#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/magnitude.cuh"
#include "cuda/vector.cuh"
#include "float8/kernels/cast_cuda.h"

// Bytes an element of bf16: 2.

namespace narrowgauge::float8::kernels {
namespace {

using cuda::ceil_div;
using cuda::kLanes;
using cuda::kWarpSize;
using cuda::load;
using cuda::magnitude_bits;
using cuda::raise;

constexpr int kThreads = 256;
constexpr int kInFlight = 8;       // loads of a thread before it looks at the first
constexpr int kMaxBlocks = 1024;   // that share a row
constexpr int kRowsPerBlock = 64;  // of the kernels for columns and for groups of less than a row

template <int kWidth>
__device__ uint32_t largest_bits(const float (&v)[kWidth]) {
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    largest = max(largest, magnitude_bits(v[i]));
  }
  return largest;
}

// Rows of `length` elements, one group each: the whole matrix as one row, or its rows. Blocks
// (blockIdx.y) share a row.
template <typename T, int kWidth>
__global__ void amax_rows_kernel(const T* x, int64_t length, float* amax) {
  const T* of_row = x + blockIdx.x * length;
  const int64_t stride = int64_t{gridDim.y} * kThreads * kWidth;
  uint32_t largest = 0;
  int64_t i = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kWidth;
  for (; i + (kInFlight - 1) * stride < length; i += kInFlight * stride) {
    float v[kInFlight][kWidth];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      load(of_row + i + k * stride, v[k]);
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      largest = max(largest, largest_bits(v[k]));
    }
  }
  for (; i < length; i += stride) {
    float v[kWidth];
    load(of_row + i, v);
    largest = max(largest, largest_bits(v));
  }
  raise(__reduce_max_sync(0xffffffffU, largest), amax + blockIdx.x);
}

// Every column, and every row where row_amax is not null: a thread takes kWidth neighbouring
// columns and kRowsPerBlock rows.
template <typename T, int kWidth>
__global__ void amax_columns_kernel(const T* x, int64_t rows, int64_t cols, float* row_amax,
                                    float* column_amax) {
  __shared__ uint32_t of_block[kThreads * kWidth];
  const int64_t first_column = int64_t{blockIdx.x} * kThreads * kWidth;
  const int64_t column = first_column + threadIdx.x * kWidth;
  const int64_t first = int64_t{blockIdx.y} * kRowsPerBlock;
  const int64_t last = min(rows, first + kRowsPerBlock);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  uint32_t largest[kWidth] = {};
  for (int64_t row = first; row < last; row += kInFlight) {
    uint32_t of_rows = 0;  // of lane k: row + k's
    float v[kInFlight][kWidth] = {};
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (row + k < last && column < cols) {
        load(x + (row + k) * cols + column, v[k]);
      }
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        largest[i] = max(largest[i], magnitude_bits(v[k][i]));
      }
      if (row_amax != nullptr) {
        const uint32_t of_row = __reduce_max_sync(0xffffffffU, largest_bits(v[k]));
        of_rows = lane == k ? of_row : of_rows;
      }
    }
    // Few blocks share a row, so that nobody looks first.
    if (row_amax != nullptr && lane < kInFlight && row + lane < last && of_rows > 0) {
      atomicMax(reinterpret_cast<unsigned*>(row_amax) + row + lane, of_rows);
    }
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    of_block[threadIdx.x * kWidth + i] = largest[i];
  }
  __syncthreads();
  // Neighbouring threads raise neighbouring columns.
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const int at = i * kThreads + static_cast<int>(threadIdx.x);
    if (first_column + at < cols && of_block[at] > 0) {
      atomicMax(reinterpret_cast<unsigned*>(column_amax) + first_column + at, of_block[at]);
    }
  }
}

// Any groups: a thread takes kWidth neighbouring columns and kRowsPerBlock rows, and gives each
// group its part as soon as the group ends. kLanesPerGroup: of neighbouring threads whose columns
// are one group's and which join their parts first; 1: no such.
template <typename T, int kWidth, int kLanesPerGroup>
__global__ void amax_groups_kernel(const T* x, int64_t rows, int64_t cols, Groups groups,
                                   float* amax) {
  const int64_t column = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
  const int64_t first = int64_t{blockIdx.y} * kRowsPerBlock;
  const int64_t last = min(rows, first + kRowsPerBlock);
  if (column >= cols) {
    return;
  }
  uint32_t largest[kWidth] = {};
  float* of_row = amax + first / groups.rows * groups.stride;
  int64_t group_end = (first / groups.rows + 1) * groups.rows;
  for (int64_t row = first; row < last; ++row) {
    float v[kWidth];
    load(x + row * cols + column, v);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      largest[i] = max(largest[i], magnitude_bits(v[i]));
    }
    if (row + 1 < last && row + 1 != group_end) {
      continue;
    }
    if constexpr (kLanesPerGroup > 1) {
      const int lane = threadIdx.x % kWarpSize;
      const unsigned members = kLanesPerGroup == kWarpSize
                                   ? 0xffffffffU
                                   : ((1U << kLanesPerGroup % kWarpSize) - 1)
                                         << lane / kLanesPerGroup * kLanesPerGroup;
#pragma unroll
      for (int i = 1; i < kWidth; ++i) {
        largest[0] = max(largest[0], largest[i]);
        largest[i] = 0;
      }
      const uint32_t joined = __reduce_max_sync(members, largest[0]);
      if (lane % kLanesPerGroup == 0 && joined > 0) {
        atomicMax(reinterpret_cast<unsigned*>(of_row + column / groups.cols), joined);
      }
      largest[0] = 0;
    } else {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const bool is_last =
            i + 1 == kWidth || (column + i) / groups.cols != (column + i + 1) / groups.cols;
        if (!is_last) {
          largest[i + 1] = max(largest[i + 1], largest[i]);
        } else if (largest[i] > 0) {
          atomicMax(reinterpret_cast<unsigned*>(of_row + (column + i) / groups.cols), largest[i]);
        }
        largest[i] = 0;
      }
    }
    of_row += groups.stride;
    group_end += groups.rows;
  }
}

// 2^floor(log2(x)), log2 rounded to fp32 first; infinity, zero and NaN stay. x >= 0.
__device__ float power_of_2_below(float x) {
  const float exponent = floorf(static_cast<float>(log2(static_cast<double>(x))));
  if (isinf(exponent) || isnan(exponent)) {
    return x;
  }
  return static_cast<float>(ldexp(1.0, static_cast<int>(exponent)));
}

__global__ void scale_kernel(const float* amax, double largest, bool power_of_2, float* scale,
                             float* inverse_scale, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) {
    const double magnitude = amax[i];
    const double bounded = magnitude < 1e-12 ? 1e-12 : magnitude;  // NaN stays
    const auto exact = static_cast<float>(largest / bounded);
    const float rounded = power_of_2 ? power_of_2_below(exact) : exact;
    scale[i] = rounded;
    inverse_scale[i] = 1.0F / rounded;
  }
}

// Whether rows of `cols` elements can be read kLanes at a time.
template <typename T>
bool reads_vectors(int64_t cols, const T* x) {
  return cuda::is_vectorizable(cols, x) && cols % kLanes<T> == 0;
}

template <typename T>
void amax_of_rows(const T* x, int64_t num_rows, int64_t length, float* amax, cudaStream_t stream) {
  constexpr int kWidth = kLanes<T>;
  const bool vectors = reads_vectors(length, x);
  const int64_t per_block = kThreads * kInFlight * (vectors ? kWidth : 1);
  const dim3 grid(static_cast<unsigned>(num_rows), static_cast<unsigned>(std::min<int64_t>(
                                                       kMaxBlocks, ceil_div(length, per_block))));
  if (vectors) {
    amax_rows_kernel<T, kWidth><<<grid, kThreads, 0, stream>>>(x, length, amax);
  } else {
    amax_rows_kernel<T, 1><<<grid, kThreads, 0, stream>>>(x, length, amax);
  }
}

// row_amax: null if not wanted.
template <typename T>
void amax_of_columns(const T* x, int64_t rows, int64_t cols, float* row_amax, float* column_amax,
                     cudaStream_t stream) {
  constexpr int kWidth = kLanes<T>;
  const bool vectors = reads_vectors(cols, x);
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(cols, kThreads * (vectors ? kWidth : 1))),
                  static_cast<unsigned>(ceil_div<int64_t>(rows, kRowsPerBlock)));
  if (vectors) {
    amax_columns_kernel<T, kWidth>
        <<<grid, kThreads, 0, stream>>>(x, rows, cols, row_amax, column_amax);
  } else {
    amax_columns_kernel<T, 1><<<grid, kThreads, 0, stream>>>(x, rows, cols, row_amax, column_amax);
  }
}

template <typename T>
void amax_of_groups(const T* x, int64_t rows, int64_t cols, Groups groups, float* amax,
                    cudaStream_t stream) {
  constexpr int kWidth = kLanes<T>;
  const bool vectorizable = cuda::is_vectorizable(cols, x);
  const int width = vectorizable ? kWidth : 1;
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(cols, kThreads * width)),
                  static_cast<unsigned>(ceil_div<int64_t>(rows, kRowsPerBlock)));
  constexpr int kBlock = 128;
  if (vectorizable && groups.cols == kBlock && cols % kBlock == 0) {
    amax_groups_kernel<T, kWidth, kBlock / kWidth>
        <<<grid, kThreads, 0, stream>>>(x, rows, cols, groups, amax);
  } else if (vectorizable) {
    amax_groups_kernel<T, kWidth, 1><<<grid, kThreads, 0, stream>>>(x, rows, cols, groups, amax);
  } else {
    amax_groups_kernel<T, 1, 1><<<grid, kThreads, 0, stream>>>(x, rows, cols, groups, amax);
  }
}

}  // namespace

template <typename T>
void tensor_to_amax(const T* x, int64_t rows, int64_t cols, Groups groups, float* amax,
                    int64_t num_groups, cuda::StreamHandle stream) {
  cuda::check(cudaMemsetAsync(amax, 0, static_cast<size_t>(num_groups) * sizeof(float), stream),
              "tensor_to_amax");
  if (rows == 0 || cols == 0) {
    return;
  }
  if (groups.cols >= cols && groups.rows >= rows) {
    amax_of_rows(x, 1, rows * cols, amax, stream);
  } else if (groups.cols >= cols && groups.rows == 1) {
    amax_of_rows(x, rows, cols, amax, stream);
  } else if (groups.cols == 1 && groups.rows >= rows) {
    amax_of_columns(x, rows, cols, nullptr, amax, stream);
  } else {
    amax_of_groups(x, rows, cols, groups, amax, stream);
  }
  cuda::check_launch("tensor_to_amax");
}

template <typename T>
void row_and_column_amax(const T* x, int64_t rows, int64_t cols, float* amax,
                         cuda::StreamHandle stream) {
  cuda::check(cudaMemsetAsync(amax, 0, static_cast<size_t>(rows + cols) * sizeof(float), stream),
              "row_and_column_amax");
  if (rows > 0 && cols > 0) {
    amax_of_columns(x, rows, cols, amax, amax + rows, stream);
    cuda::check_launch("row_and_column_amax");
  }
}

void amax_to_scale(const float* amax, double largest, bool power_of_2, float* scale,
                   float* inverse_scale, int64_t count, cuda::StreamHandle stream) {
  if (count == 0) {
    return;
  }
  scale_kernel<<<static_cast<unsigned>(ceil_div<int64_t>(count, kThreads)), kThreads, 0, stream>>>(
      amax, largest, power_of_2, scale, inverse_scale, count);
  cuda::check_launch("amax_to_scale");
}

template void tensor_to_amax(const float*, int64_t, int64_t, Groups, float*, int64_t,
                             cuda::StreamHandle);
template void tensor_to_amax(const uint16_t*, int64_t, int64_t, Groups, float*, int64_t,
                             cuda::StreamHandle);

template void row_and_column_amax(const float*, int64_t, int64_t, float*, cuda::StreamHandle);
template void row_and_column_amax(const uint16_t*, int64_t, int64_t, float*, cuda::StreamHandle);

}  // namespace narrowgauge::float8::kernels

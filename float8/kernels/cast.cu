#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/magnitude.cuh"
#include "cuda/vector.cuh"
#include "float8/kernels/cast_cuda.h"
#include "float8/kernels/convert.cuh"
#include "float8/kernels/tile.cuh"

// Bytes an element of bf16: 3 with one output, 4 with both. A block takes a tile of 128 x 128
// elements, a thread 4 rows of 16 neighbouring columns of it. Tiles are taken from the last to the
// first: a pass that measured x just before has left its end in the cache.

namespace narrowgauge::float8::kernels {
namespace {

using cuda::ceil_div;
using cuda::magnitude_bits;
using cuda::raise;

// The elements of a thread in one row, as they lie in memory.
template <typename T>
struct Raw {
  uint4 part[sizeof(T) * kVector / sizeof(uint4)];
};

__device__ void expand(const Raw<float>& raw, float (&to)[kVector]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[4 * i] = __uint_as_float(raw.part[i].x);
    to[4 * i + 1] = __uint_as_float(raw.part[i].y);
    to[4 * i + 2] = __uint_as_float(raw.part[i].z);
    to[4 * i + 3] = __uint_as_float(raw.part[i].w);
  }
}

__device__ void expand(const Raw<uint16_t>& raw, float (&to)[kVector]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t words[4] = {raw.part[i].x, raw.part[i].y, raw.part[i].z, raw.part[i].w};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      to[8 * i + 2 * w] = __uint_as_float(words[w] << 16);
      to[8 * i + 2 * w + 1] = __uint_as_float(words[w] & 0xffff0000U);
    }
  }
}

__device__ uint32_t bits(float x) { return __float_as_uint(x); }
__device__ uint32_t bits(uint16_t x) { return x; }

// The part of a row that lies in the matrix; the rest reads as zero.
template <typename T>
__device__ Raw<T> load_edge(const T* from, int64_t count) {
  constexpr int kPerWord = 4 / sizeof(T);
  Raw<T> raw;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(T)); ++i) {
    uint32_t words[4] = {};
#pragma unroll
    for (int k = 0; k < 4 * kPerWord; ++k) {
      const int at = 4 * kPerWord * i + k;
      words[k / kPerWord] |= at < count ? bits(from[at]) << (k % kPerWord * 16) : 0;
    }
    raw.part[i] = make_uint4(words[0], words[1], words[2], words[3]);
  }
  return raw;
}

template <typename T>
__device__ Raw<T> load_row(const T* from, int64_t count, bool aligned) {
  if (!aligned || count < kVector) {
    return load_edge(from, count);
  }
  Raw<T> raw;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(T)); ++i) {
    raw.part[i] = reinterpret_cast<const uint4*>(from)[i];
  }
  return raw;
}

template <Format kFormat>
__device__ uint4 encode(const float (&x)[kVector]) {
  return make_uint4(encode_four<kFormat>(x[0], x[1], x[2], x[3]),
                    encode_four<kFormat>(x[4], x[5], x[6], x[7]),
                    encode_four<kFormat>(x[8], x[9], x[10], x[11]),
                    encode_four<kFormat>(x[12], x[13], x[14], x[15]));
}

// Where the scales of a tile's rows and columns begin: groups are 1 or kTile of them, or all.
__device__ int64_t group_of(int64_t group_size, int64_t first, int64_t index) {
  return group_size == 1 ? index : group_size == kTile ? first / kTile : 0;
}

struct CastArguments {
  CastOutput by_row;
  CastOutput by_column;
  float* amax;  // null: not wanted
  int64_t rows;
  int64_t cols;
  bool shares_codes;  // both outputs have the same scales
  bool reads_aligned;
  bool rows_aligned;     // by_row's rows begin at multiples of 16 bytes
  bool columns_aligned;  // by_column's
};

// by_column's scales: one for each column (kPerColumn), or one for all of the tile.
template <typename T, Format kFormat, bool kPerColumn, bool kWithAmax>
__global__ void __launch_bounds__(kThreads) cast_kernel(const T* x, CastArguments a) {
  __shared__ __align__(16) uint32_t tile[kTile * kTile / 4];
  const auto tiles_per_row = static_cast<unsigned>(ceil_div<int64_t>(a.cols, kTile));
  const unsigned index = gridDim.x - 1 - blockIdx.x;
  const int64_t first_row = int64_t{index / tiles_per_row} * kTile;
  const int64_t first_column = int64_t{index % tiles_per_row} * kTile;
  const TilePart part = part_of_tile();
  const int64_t row = first_row + part.row;
  const int64_t column = first_column + part.column;
  const int64_t count = a.cols - column;
  Raw<T> raw[kRowsPerThread];
#pragma unroll
  for (int r = 0; r < kRowsPerThread; ++r) {
    raw[r] =
        load_row(x + (row + r) * a.cols + column, row + r < a.rows ? count : 0, a.reads_aligned);
  }
  float column_scale[kPerColumn ? kVector : 1];
  if (a.by_column.codes != nullptr) {
    const float* scale = a.by_column.scale + group_of(a.by_column.groups.rows, first_row, 0) *
                                                 a.by_column.groups.stride;
    if constexpr (kPerColumn) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        column_scale[i] = scale[min(column + i, a.cols - 1)];
      }
    } else {
      column_scale[0] = scale[group_of(a.by_column.groups.cols, first_column, 0)];
    }
  }
  uint32_t largest = 0;
  uint4 transposed[kRowsPerThread];
#pragma unroll
  for (int r = 0; r < kRowsPerThread; ++r) {
    float v[kVector];
    expand(raw[r], v);
    if constexpr (kWithAmax) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        largest = max(largest, magnitude_bits(v[i]));
      }
    }
    uint4 codes = make_uint4(0, 0, 0, 0);
    if (a.by_row.codes != nullptr && row + r < a.rows) {
      const float scale =
          a.by_row
              .scale[group_of(a.by_row.groups.rows, first_row, row + r) * a.by_row.groups.stride +
                     group_of(a.by_row.groups.cols, first_column, 0)];
      float scaled[kVector];
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        scaled[i] = v[i] * scale;
      }
      codes = encode<kFormat>(scaled);
      store_codes(a.by_row.codes + (row + r) * a.cols + column, codes, count, a.rows_aligned);
    }
    if (a.by_column.codes != nullptr && !a.shares_codes) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        v[i] *= column_scale[kPerColumn ? i : 0];
      }
      codes = encode<kFormat>(v);
    }
    transposed[r] = codes;
  }
  if (a.by_column.codes != nullptr) {
    store_transposed(transposed, tile, a.by_column.codes, a.rows, a.cols, first_row, first_column,
                     a.columns_aligned);
  }
  if constexpr (kWithAmax) {
    raise(__reduce_max_sync(0xffffffffU, largest), a.amax);
  }
}

template <typename T, Format kFormat>
void launch_cast(const T* x, const CastArguments& a, cudaStream_t stream) {
  const auto grid =
      static_cast<unsigned>(ceil_div<int64_t>(a.rows, kTile) * ceil_div<int64_t>(a.cols, kTile));
  if (a.amax != nullptr) {
    cast_kernel<T, kFormat, false, true><<<grid, kThreads, 0, stream>>>(x, a);
  } else if (a.by_column.codes != nullptr && a.by_column.groups.cols == 1) {
    cast_kernel<T, kFormat, true, false><<<grid, kThreads, 0, stream>>>(x, a);
  } else {
    cast_kernel<T, kFormat, false, false><<<grid, kThreads, 0, stream>>>(x, a);
  }
  cuda::check_launch("float8 cast");
}

bool have_same_scales(const CastOutput& a, const CastOutput& b) {
  return a.codes != nullptr && a.scale == b.scale && a.groups.rows == b.groups.rows &&
         a.groups.cols == b.groups.cols;
}

}  // namespace

bool has_float8_instructions() {
  int device = 0;
  int major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major >= 9;
}

template <typename T>
void cast(const T* x, int64_t rows, int64_t cols, Format format, const CastOutput& by_row,
          const CastOutput& by_column, float* amax, cuda::StreamHandle stream) {
  if (amax != nullptr) {
    cuda::check(cudaMemsetAsync(amax, 0, sizeof(float), stream), "float8 cast");
  }
  if (rows == 0 || cols == 0 || (by_row.codes == nullptr && by_column.codes == nullptr)) {
    return;
  }
  const CastArguments a{by_row,
                        by_column,
                        amax,
                        rows,
                        cols,
                        have_same_scales(by_row, by_column),
                        cuda::is_vectorizable(cols, x),
                        cuda::is_vectorizable(cols, by_row.codes),
                        cuda::is_vectorizable(rows, by_column.codes)};
  if (format == Format::kE4m3) {
    launch_cast<T, Format::kE4m3>(x, a, stream);
  } else {
    launch_cast<T, Format::kE5m2>(x, a, stream);
  }
}

template void cast(const float*, int64_t, int64_t, Format, const CastOutput&, const CastOutput&,
                   float*, cuda::StreamHandle);
template void cast(const uint16_t*, int64_t, int64_t, Format, const CastOutput&, const CastOutput&,
                   float*, cuda::StreamHandle);

}  // namespace narrowgauge::float8::kernels

#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/vector.cuh"
#include "float8/kernels/cast_cuda.h"
#include "float8/kernels/convert.cuh"

// Bytes an element of bf16: 3 with one output, 4 with both. A block takes a tile of 128 x 128
// elements; the transposed codes pass through shared memory, whose groups of 16 bytes are rotated
// by one for every 16 rows, so that neither rows nor columns meet in a bank.

namespace narrowgauge::float8::kernels {
namespace {

using cuda::ceil_div;
using cuda::load;

constexpr int kTile = 128;
constexpr int kVector = 16;  // elements a thread casts at a time: 16 bytes of codes
constexpr int kVectorsPerRow = kTile / kVector;
constexpr int kThreads = 256;
constexpr int kRowsPerPass = kThreads / kVectorsPerRow;

template <typename T>
__device__ void load_vector(const T* from, float (&to)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector; i += 8) {
    float part[8];
    load(from + i, part);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      to[i + k] = part[k];
    }
  }
}

// The part of a row that lies in the matrix; the rest reads as zero.
template <typename T>
__device__ void load_edge(const T* from, int64_t count, float (&to)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    to[i] = i < count ? cuda::to_float(from[i]) : 0.0F;
  }
}

// 32 bits: a division of 64 costs as much as a dozen elements' loads.
__device__ int64_t divide(int64_t a, int64_t b) {
  return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
}

template <Format kFormat>
__device__ uint4 encode(const float (&x)[kVector], const CastOutput& output, int64_t row,
                        int64_t column, int64_t cols) {
  const float* of_row = output.scale + divide(row, output.groups.rows) * output.groups.stride;
  float s[kVector];
  if (output.groups.cols == 1) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      s[i] = x[i] * of_row[min(column + i, cols - 1)];
    }
  } else {  // multiples of kVector or the whole row: one group a vector
    const float scale = of_row[divide(column, output.groups.cols)];
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      s[i] = x[i] * scale;
    }
  }
  return make_uint4(encode_four<kFormat>(s[0], s[1], s[2], s[3]),
                    encode_four<kFormat>(s[4], s[5], s[6], s[7]),
                    encode_four<kFormat>(s[8], s[9], s[10], s[11]),
                    encode_four<kFormat>(s[12], s[13], s[14], s[15]));
}

// count: codes that lie in the output, kVector inside.
__device__ void store_codes(uint8_t* to, uint4 codes, int64_t count, bool aligned) {
  if (aligned && count >= kVector) {
    *reinterpret_cast<uint4*>(to) = codes;
    return;
  }
  const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (i < count) {
      to[i] = static_cast<uint8_t>(words[i / 4] >> (i % 4 * 8));
    }
  }
}

struct CastArguments {
  CastOutput by_row;
  CastOutput by_column;
  int64_t rows;
  int64_t cols;
  bool reads_aligned;
  bool rows_aligned;     // by_row's rows begin at multiples of 16 bytes
  bool columns_aligned;  // by_column's
};

// Where the 16 codes of rows `row` at `group` of a tile lie.
__device__ int rotated(int row, int group) {
  return row * kVectorsPerRow + (group + row / kVector) % kVectorsPerRow;
}

// 16 rows of one column of the tile.
__device__ uint4 gather(const uint8_t* tile, int first_row, int column) {
  uint32_t words[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    words[w] = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first_row + 4 * w + i;
      const int at = rotated(row, column / kVector) * kVector + column % kVector;
      words[w] |= uint32_t{tile[at]} << (8 * i);
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

template <typename T, Format kFormat>
__global__ void __launch_bounds__(kThreads) cast_kernel(const T* x, CastArguments a) {
  __shared__ uint4 tile[kTile * kVectorsPerRow];
  const int64_t tiles_per_row = ceil_div<int64_t>(a.cols, kTile);
  const int64_t first_row = blockIdx.x / tiles_per_row * kTile;
  const int64_t first_column = blockIdx.x % tiles_per_row * kTile;
  const int vector = static_cast<int>(threadIdx.x) % kVectorsPerRow;
  const int64_t column = first_column + vector * kVector;
  float v[kTile / kRowsPerPass][kVector];
#pragma unroll
  for (int pass = 0; pass < kTile / kRowsPerPass; ++pass) {
    const int64_t row = first_row + pass * kRowsPerPass + threadIdx.x / kVectorsPerRow;
    const int64_t count = row < a.rows ? a.cols - column : 0;
    if (a.reads_aligned && count >= kVector) {
      load_vector(x + row * a.cols + column, v[pass]);
    } else {
      load_edge(x + row * a.cols + column, count, v[pass]);
    }
  }
#pragma unroll
  for (int pass = 0; pass < kTile / kRowsPerPass; ++pass) {
    const int in_tile = pass * kRowsPerPass + static_cast<int>(threadIdx.x) / kVectorsPerRow;
    const int64_t row = first_row + in_tile;
    const int64_t count = row < a.rows ? a.cols - column : 0;
    if (count <= 0) {
      continue;
    }
    if (a.by_row.codes != nullptr) {
      store_codes(a.by_row.codes + row * a.cols + column,
                  encode<kFormat>(v[pass], a.by_row, row, column, a.cols), count, a.rows_aligned);
    }
    if (a.by_column.codes != nullptr) {
      tile[rotated(in_tile, vector)] = encode<kFormat>(v[pass], a.by_column, row, column, a.cols);
    }
  }
  if (a.by_column.codes != nullptr) {
    __syncthreads();
    const int chunk = static_cast<int>(threadIdx.x) % kVectorsPerRow * kVector;
    const int64_t count = a.rows - first_row - chunk;
    for (int c = static_cast<int>(threadIdx.x) / kVectorsPerRow;
         c < kTile && first_column + c < a.cols && count > 0; c += kRowsPerPass) {
      store_codes(a.by_column.codes + (first_column + c) * a.rows + first_row + chunk,
                  gather(reinterpret_cast<const uint8_t*>(tile), chunk, c), count,
                  a.columns_aligned);
    }
  }
}

template <typename T, Format kFormat>
void launch_cast(const T* x, const CastArguments& a, cudaStream_t stream) {
  const auto grid =
      static_cast<unsigned>(ceil_div<int64_t>(a.rows, kTile) * ceil_div<int64_t>(a.cols, kTile));
  cast_kernel<T, kFormat><<<grid, kThreads, 0, stream>>>(x, a);
  cuda::check_launch("float8 cast");
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
          const CastOutput& by_column, cuda::StreamHandle stream) {
  if (rows == 0 || cols == 0 || (by_row.codes == nullptr && by_column.codes == nullptr)) {
    return;
  }
  const CastArguments a{by_row,
                        by_column,
                        rows,
                        cols,
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
                   cuda::StreamHandle);
template void cast(const uint16_t*, int64_t, int64_t, Format, const CastOutput&, const CastOutput&,
                   cuda::StreamHandle);

}  // namespace narrowgauge::float8::kernels

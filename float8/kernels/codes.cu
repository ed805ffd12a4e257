#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/vector.cuh"
#include "float8/kernels/cast_cuda.h"
#include "float8/kernels/tile.cuh"

// What is done with codes that are there already.

namespace narrowgauge::float8::kernels {
namespace {

using cuda::ceil_div;

constexpr int kMaxBlocks = 2048;

template <typename T>
__global__ void count_losses_kernel(const T* x, const uint8_t* codes, int64_t count,
                                    uint32_t largest_code, unsigned long long* counts) {
  unsigned saturated = 0;
  unsigned underflowed = 0;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    const uint32_t code = codes[i] & 0x7fU;
    saturated += code == largest_code ? 1 : 0;
    underflowed += code == 0 && cuda::to_float(x[i]) != 0.0F ? 1 : 0;
  }
  saturated = __reduce_add_sync(0xffffffffU, saturated);
  underflowed = __reduce_add_sync(0xffffffffU, underflowed);
  if (threadIdx.x % cuda::kWarpSize == 0) {
    atomicAdd(counts, saturated);
    atomicAdd(counts + 1, underflowed);
  }
}

__global__ void __launch_bounds__(kThreads)
    transpose_kernel(const uint8_t* from, int64_t rows, int64_t cols, uint8_t* to,
                     bool reads_aligned, bool writes_aligned) {
  __shared__ __align__(16) uint32_t tile[kTile * kTile / 4];
  const auto tiles_per_row = static_cast<unsigned>(ceil_div<int64_t>(cols, kTile));
  const int64_t first_row = int64_t{blockIdx.x / tiles_per_row} * kTile;
  const int64_t first_column = int64_t{blockIdx.x % tiles_per_row} * kTile;
  const TilePart part = part_of_tile();
  const int64_t column = first_column + part.column;
  uint4 codes[kRowsPerThread];
#pragma unroll
  for (int r = 0; r < kRowsPerThread; ++r) {
    const int64_t row = first_row + part.row + r;
    const uint8_t* at = from + row * cols + column;
    const int64_t count = row < rows ? cols - column : 0;
    if (reads_aligned && count >= kVector) {
      codes[r] = *reinterpret_cast<const uint4*>(at);
      continue;
    }
    uint32_t words[4] = {};
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      words[i / 4] |= i < count ? uint32_t{at[i]} << (i % 4 * 8) : 0;
    }
    codes[r] = make_uint4(words[0], words[1], words[2], words[3]);
  }
  store_transposed(codes, tile, to, rows, cols, first_row, first_column, writes_aligned);
}

}  // namespace

template <typename T>
void count_losses(const T* x, const uint8_t* codes, int64_t count, Format format, int64_t* counts,
                  cuda::StreamHandle stream) {
  cuda::check(cudaMemsetAsync(counts, 0, 2 * sizeof(int64_t), stream), "count_losses");
  if (count == 0) {
    return;
  }
  const auto grid =
      static_cast<unsigned>(std::min<int64_t>(kMaxBlocks, ceil_div<int64_t>(count, kThreads)));
  count_losses_kernel<<<grid, kThreads, 0, stream>>>(x, codes, count,
                                                     format == Format::kE4m3 ? 0x7eU : 0x7bU,
                                                     reinterpret_cast<unsigned long long*>(counts));
  cuda::check_launch("count_losses");
}

void transpose_codes(const uint8_t* from, int64_t rows, int64_t cols, uint8_t* to,
                     cuda::StreamHandle stream) {
  if (rows == 0 || cols == 0) {
    return;
  }
  const auto grid =
      static_cast<unsigned>(ceil_div<int64_t>(rows, kTile) * ceil_div<int64_t>(cols, kTile));
  transpose_kernel<<<grid, kThreads, 0, stream>>>(
      from, rows, cols, to, cuda::is_vectorizable(cols, from), cuda::is_vectorizable(rows, to));
  cuda::check_launch("transpose_codes");
}

template void count_losses(const float*, const uint8_t*, int64_t, Format, int64_t*,
                           cuda::StreamHandle);
template void count_losses(const uint16_t*, const uint8_t*, int64_t, Format, int64_t*,
                           cuda::StreamHandle);

}  // namespace narrowgauge::float8::kernels

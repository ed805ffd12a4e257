#pragma once

#include <cstdint>

#include "cuda/launch.cuh"

// A block's part in writing a matrix of codes and its transposed one: a tile of 128 x 128, of which
// each of 256 threads holds 4 rows of 16 neighbouring columns.
namespace narrowgauge::float8::kernels {

inline constexpr int kTile = 128;
inline constexpr int kVector = 16;  // codes of a row that a thread holds: 16 bytes
inline constexpr int kVectorsPerRow = kTile / kVector;
inline constexpr int kRowsPerThread = 4;
inline constexpr int kThreads = kTile / kRowsPerThread * kVectorsPerRow;

// Where a thread's first element lies in its tile.
struct TilePart {
  int row;
  int column;
};
__device__ inline TilePart part_of_tile() {
  const int thread = static_cast<int>(threadIdx.x);
  return {thread / kVectorsPerRow * kRowsPerThread, thread % kVectorsPerRow * kVector};
}

// count: codes that lie in the output, kVector inside.
__device__ inline void store_codes(uint8_t* to, uint4 codes, int64_t count, bool aligned) {
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

// Byte j of each of four words, for j = 0 to 3: a 4 x 4 transposition.
__device__ inline void transpose_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d,
                                       uint32_t (&to)[4]) {
  const uint32_t low_ab = __byte_perm(a, b, 0x5140);
  const uint32_t high_ab = __byte_perm(a, b, 0x7362);
  const uint32_t low_cd = __byte_perm(c, d, 0x5140);
  const uint32_t high_cd = __byte_perm(c, d, 0x7362);
  to[0] = __byte_perm(low_ab, low_cd, 0x5410);
  to[1] = __byte_perm(low_ab, low_cd, 0x7632);
  to[2] = __byte_perm(high_ab, high_cd, 0x5410);
  to[3] = __byte_perm(high_ab, high_cd, 0x7632);
}

// Writes the block's tile, which begins at (first_row, first_column), into the transposed matrix
// `to` [cols, rows]. codes: the thread's rows. tile: shared, a row for each column, 32 words of 4
// rows; words are swapped by the column, so that neither writing nor reading meets in a bank.
// Synchronises the block.
__device__ inline void store_transposed(const uint4 (&codes)[kRowsPerThread], uint32_t* tile,
                                        uint8_t* to, int64_t rows, int64_t cols, int64_t first_row,
                                        int64_t first_column, bool aligned) {
  constexpr int kWordsPerColumn = kTile / 4;
  const int thread = static_cast<int>(threadIdx.x);
  const int vector = thread % kVectorsPerRow;
  const int word = thread / kVectorsPerRow ^ (4 * vector);
  const auto store_four = [&](int first, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    uint32_t columns[4];
    transpose_bytes(a, b, c, d, columns);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      tile[(vector * kVector + first + i) * kWordsPerColumn + word] = columns[i];
    }
  };
  store_four(0, codes[0].x, codes[1].x, codes[2].x, codes[3].x);
  store_four(4, codes[0].y, codes[1].y, codes[2].y, codes[3].y);
  store_four(8, codes[0].z, codes[1].z, codes[2].z, codes[3].z);
  store_four(12, codes[0].w, codes[1].w, codes[2].w, codes[3].w);
  __syncthreads();
  const int chunk = thread % kVectorsPerRow;
  const int64_t row = first_row + chunk * kVector;
#pragma unroll
  for (int column = thread / kVectorsPerRow; column < kTile; column += kThreads / kVectorsPerRow) {
    const int at = column * kWordsPerColumn + ((4 * chunk) ^ (column / kVector * 4));
    if (first_column + column < cols && row < rows) {
      store_codes(to + (first_column + column) * rows + row,
                  *reinterpret_cast<const uint4*>(tile + at), rows - row, aligned);
    }
  }
}

}  // namespace narrowgauge::float8::kernels

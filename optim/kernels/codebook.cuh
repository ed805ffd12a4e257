#pragma once

#include <cstdint>

#include "optim/kernels/codebook.h"

// Codes of a block of moments on a GPU, exact as CodebookTable says. A look-up per lane at random
// places costs three or four accesses of a bank in shared memory, and up to 32 in the cache.
namespace narrowgauge::optim::kernels {

// A codebook's tables in shared memory.
struct SharedTable {
  const float* values;
  const uint32_t* cells;
  int32_t first_cell;
  int32_t last_cell;
  float scale_divisor;
};

inline constexpr int kNumValues = 256;

__host__ __device__ inline int num_cells(const CodebookTable& table) {
  return 2 * (table.last_cell - table.first_cell + 1);
}

// All threads of the block take part; `to` moves behind the tables.
__device__ inline SharedTable copy_table(const CodebookTable& table, uint32_t*& to) {
  auto* const values = reinterpret_cast<float*>(to);
  uint32_t* const cells = to + kNumValues;
  for (int i = static_cast<int>(threadIdx.x); i < kNumValues; i += static_cast<int>(blockDim.x)) {
    values[i] = table.values[i];
  }
  const int count = num_cells(table);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    cells[i] = table.cells[i];
  }
  to = cells + count;
  return {values, cells, table.first_cell, table.last_cell, table.scale_divisor};
}

__device__ inline uint32_t encoded(float x, float scale, const SharedTable& table) {
  const auto bits = __float_as_int(x / scale);
  const int cell = min(max((bits >> 16) & 0x7fff, table.first_cell), table.last_cell);
  const int negative = bits < 0 ? table.last_cell - table.first_cell + 1 : 0;
  const uint32_t entry = table.cells[cell - table.first_cell + negative];
  const auto low = static_cast<uint32_t>(bits) & 0xffffU;
  return (low >= (entry >> 16) ? entry >> 8 : entry) & 0xffU;
}

inline constexpr uint32_t kSmallestScaleBits = 0x2b8cbcccU;  // of 1e-12

__device__ inline float scale_of(uint32_t amax_bits, const SharedTable& table) {
  return __uint_as_float(max(amax_bits, kSmallestScaleBits)) / table.scale_divisor;
}

}  // namespace narrowgauge::optim::kernels

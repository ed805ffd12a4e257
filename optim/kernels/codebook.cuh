#pragma once

#include <cstdint>

#include "optim/kernels/codebook.h"

// Codes of a block of moments on a GPU, exact as CodebookTable says. A look-up per lane at random
// places costs three or four accesses of a bank in shared memory, and up to 32 in the cache.
namespace narrowgauge::optim::kernels {

// A codebook's tables in shared memory, whose addresses have 32 bits.
struct SharedTable {
  uint32_t values;       // [kNumValues] fp32; a multiple of kValuesBytes
  uint32_t positive;     // of the cell 0, if there were one
  uint32_t to_negative;  // from the cell of a number to that of its opposite
  float smallest;        // of the first cell, of the last
  float largest;
  float scale_divisor;
};

inline constexpr int kNumValues = 256;
inline constexpr int kValuesBytes = kNumValues * static_cast<int>(sizeof(float));

__host__ __device__ inline int num_cells(const CodebookTable& table) {
  return 2 * (table.last_cell - table.first_cell + 1);
}

// All threads of the block take part. values: [kNumValues], cells: [num_cells(table)]
__device__ inline SharedTable copy_table(const CodebookTable& table, float* values,
                                         uint32_t* cells) {
  for (int i = static_cast<int>(threadIdx.x); i < kNumValues; i += static_cast<int>(blockDim.x)) {
    values[i] = table.values[i];
  }
  const int count = num_cells(table);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    cells[i] = table.cells[i];
  }
  SharedTable shared;
  shared.values = static_cast<uint32_t>(__cvta_generic_to_shared(values));
  shared.positive = static_cast<uint32_t>(__cvta_generic_to_shared(cells)) -
                    4 * static_cast<uint32_t>(table.first_cell);
  shared.to_negative = 2 * static_cast<uint32_t>(count);
  shared.smallest = __int_as_float(table.first_cell << 16);
  shared.largest = __int_as_float(table.last_cell << 16);
  shared.scale_divisor = table.scale_divisor;
  return shared;
}

__device__ inline uint32_t load_shared(uint32_t address) {
  uint32_t word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address));
  return word;
}

// The value of the code in the kBits of word from `shift` on.
template <int kBits>
__device__ float decoded(uint32_t word, int shift, const SharedTable& table) {
  constexpr uint32_t kMask = ((1U << kBits) - 1) * 4;
  const uint32_t offset = (shift >= 2 ? word >> (shift - 2) : word << (2 - shift)) & kMask;
  return __uint_as_float(load_shared(table.values | offset));
}

// The code of x = a moment / its scale in the lowest byte; others arbitrary. A NaN is as infinity.
__device__ inline uint32_t encoded(float x, const SharedTable& table) {
  const float clamped = fminf(fmaxf(fabsf(x), table.smallest), table.largest);
  const uint32_t bits = __float_as_uint(clamped);
  const uint32_t sign = __float_as_int(x) < 0 ? table.to_negative : 0;
  const uint32_t entry = load_shared(table.positive + sign + 4 * (bits >> 16));
  // The lower half of bits beside the boundary in the upper half of the entry.
  return (bits << 16 | 0xffffU) >= entry ? entry >> 8 : entry;
}

inline constexpr uint32_t kSmallestScaleBits = 0x2b8cbcccU;  // of 1e-12

__device__ inline float scale_of(uint32_t amax_bits, const SharedTable& table) {
  return __uint_as_float(max(amax_bits, kSmallestScaleBits)) / table.scale_divisor;
}

}  // namespace narrowgauge::optim::kernels

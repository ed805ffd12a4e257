#pragma once

#include <cstdint>

namespace narrowgauge::nn::kernels {

// What each element is multiplied by: element i of the stream draws word i % 4 of the Philox block
// (i / 4, step) under `key`; below `threshold` it is dropped.
struct DropoutFactors {
  uint64_t key = 0;
  uint64_t step = 0;
  uint32_t threshold = 0;
  float dropped = 0.0F;
  float kept = 1.0F;
};

// x, out: [count], the elements [first, first + count) of the stream. The same bits from every
// instruction set and from the kernel on a GPU: one multiplication in fp32, rounded to T.
void dropout(const float* x, float* out, int64_t first, int64_t count, DropoutFactors factors);
void dropout(const uint16_t* x, uint16_t* out, int64_t first, int64_t count,
             DropoutFactors factors);

}  // namespace narrowgauge::nn::kernels

#pragma once

#include <cstdint>

namespace narrowgauge::nn::kernels {

// Key and upper counter words of one parameter's stream.
struct NormalStream {
  uint64_t key = 0;
  uint64_t seed = 0;
};

// out: [count], the normal values at flat indices [first, first + count) of the stream, times std
// plus mean. The same bits from every instruction set.
void fill_normal(float* out, int64_t first, int64_t count, NormalStream stream, float mean,
                 float std);
// bf16: the fp32 values rounded to nearest even.
void fill_normal(uint16_t* out, int64_t first, int64_t count, NormalStream stream, float mean,
                 float std);

}  // namespace narrowgauge::nn::kernels

#pragma once

#include <cstdint>

#include "float8/kernels/cast_cuda.h"

namespace narrowgauge::float8::kernels {

// Two codes, low in the lower byte. The instruction saturates and keeps NaN (as 0x7f). It exists
// from compute capability 8.9 on; kernels that use it are compiled for 9.0.
template <Format kFormat>
__device__ inline uint32_t encode_pair(float low, float high) {
  uint16_t pair;
  if constexpr (kFormat == Format::kE4m3) {
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

template <Format kFormat>
__device__ inline uint32_t encode_four(float a, float b, float c, float d) {
  return encode_pair<kFormat>(a, b) | encode_pair<kFormat>(c, d) << 16;
}

}  // namespace narrowgauge::float8::kernels

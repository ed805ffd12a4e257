#pragma once

#include <cstdint>

#include "nn/kernels/vector_math.h"

namespace narrowgauge::nn::kernels {

// One head rotated half-split by +angle (forward) or -angle (backward: the inverse is the
// transpose), times `scale`, in fp32 with one rounding. in, out: [2 * half], not overlapping; cos,
// sin: [half], of the head's position.
template <typename In, typename Out, bool kBack>
NG_INLINE void rotate_head(const In* __restrict in, Out* __restrict out,
                           const float* __restrict cos, const float* __restrict sin, int64_t half,
                           float scale = 1.0F) {
#pragma GCC ivdep
  for (int64_t i = 0; i < half; ++i) {
    const float a = to_float(in[i]) * scale;
    const float b = to_float(in[i + half]) * scale;
    const float s = kBack ? -sin[i] : sin[i];
    out[i] = from_float<Out>(a * cos[i] - b * s);
    out[i + half] = from_float<Out>(b * cos[i] + a * s);
  }
}

}  // namespace narrowgauge::nn::kernels

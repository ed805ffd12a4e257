#pragma once

#include <cstdint>

#include "float8/kernels/float8_math.h"

// Scales from amax, `count` of each. The formulas, with what they do for 0, infinity and NaN, stand
// in float8/scaling.h; the logarithms are rounded to fp32 as torch's are, which decides for values
// a few units in the last place from a power of two.
namespace narrowgauge::float8::kernels {

// scale = max / max(amax, 1e-12) in fp64, rounded to fp32, and to a power of two below if asked;
// inverse_scale = 1 / scale.
void amax_to_scale(const float* amax, int64_t count, Float8Format format, bool power_of_2,
                   float* scale, float* inverse_scale);

// e8m0: biased exponents of MX blocks, rounded up (rceil) or down (floor); scale: the multiplier
// that goes with each.
void amax_to_e8m0(const float* amax, int64_t count, Float8Format format, bool rceil, uint8_t* e8m0,
                  float* scale);

}  // namespace narrowgauge::float8::kernels

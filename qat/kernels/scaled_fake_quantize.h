#pragma once

#include <cstdint>

// Quantize and dequantize on the grids that are a scale times a fixed set of
// values (fp8, MX, NVFP4, GGUF), with the bits of quantization/*_grid.h. Scales
// are few and come from there; these are the two passes over the values. float
// is fp32, uint16_t is bf16.
namespace narrowgauge::qat::kernels {

// What x is made before it is rounded, and to what.
enum class ScaledRounding {
  kE4m3Divided,     // clamp(x / before, -448, 448) to e4m3
  kE4m3Multiplied,  // clamp(x * before, -448, 448) to e4m3
  kE2m1Multiplied,  // clamp(x * before, -6, 6) to e2m1
  kQ8_0,            // x * before to the nearest integer in [-127, 127], ties away from
                    // zero
  kQ4_0,            // min(15, trunc(x * before + 8.5)) - 8, the sum rounded once
};

// largest[i] = the element of largest magnitude of group i, with its sign; the
// first of equals. A group is `group` neighbours; NaN if it holds one, and
// infinite if it holds one and no NaN.
void signed_amax(const float* x, int64_t num_groups, int64_t group, float* largest);
void signed_amax(const uint16_t* x, int64_t num_groups, int64_t group, float* largest);

// y = rounded(x, before) * after, of each group's factors; NaN where they are.
// The product is rounded to y's dtype once. x and y are [num_groups, group].
void fake_quantize_scaled(const float* x, int64_t num_groups, int64_t group,
                          ScaledRounding rounding, const float* before, const float* after,
                          float* y);
void fake_quantize_scaled(const uint16_t* x, int64_t num_groups, int64_t group,
                          ScaledRounding rounding, const float* before, const float* after,
                          uint16_t* y);

}  // namespace narrowgauge::qat::kernels

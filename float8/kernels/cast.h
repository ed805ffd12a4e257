#pragma once

#include <cstdint>

#include "float8/kernels/float8_math.h"

// Amax, cast to fp8 and back over matrices in row-major order. T is float, or uint16_t for bf16.
// `groups` says which elements share a scale: those of one rectangle of group_rows x group_cols,
// counted from row 0 of the matrix that is passed, the last ones cut. A dimension that a group
// spans has one group (group_rows >= rows).
namespace narrowgauge::float8::kernels {

struct ScaleGroups {
  int64_t rows;
  int64_t cols;
};

// amax[i]: max |x| over group i, groups in row-major order, raised where it was lower: the caller
// clears it. NaN if the group holds one.
void amax(const float* x, int64_t rows, int64_t cols, ScaleGroups groups, float* amax);
void amax(const uint16_t* x, int64_t rows, int64_t cols, ScaleGroups groups, float* amax);

// codes = encode(x * scale), scale: one for each group. amax as above, or null.
void cast(const float* x, int64_t rows, int64_t cols, ScaleGroups groups, const float* scale,
          Float8Format format, uint8_t* codes, float* amax);
void cast(const uint16_t* x, int64_t rows, int64_t cols, ScaleGroups groups, const float* scale,
          Float8Format format, uint8_t* codes, float* amax);

// x = decode(codes) * inverse_scale, rounded once.
void decode(const uint8_t* codes, int64_t rows, int64_t cols, ScaleGroups groups,
            const float* inverse_scale, Float8Format format, float* x);
void decode(const uint8_t* codes, int64_t rows, int64_t cols, ScaleGroups groups,
            const float* inverse_scale, Float8Format format, uint16_t* x);

// Of `count` codes that `cast` made of x: how many have the largest magnitude, and how many are
// zero where x is not. Adds to both.
struct CastLosses {
  int64_t saturated = 0;
  int64_t underflowed = 0;
};
void count_losses(const float* x, const uint8_t* codes, int64_t count, Float8Format format,
                  CastLosses* losses);
void count_losses(const uint16_t* x, const uint8_t* codes, int64_t count, Float8Format format,
                  CastLosses* losses);

// The same, element by element: what tests compare with.
void amax_reference(const float* x, int64_t rows, int64_t cols, ScaleGroups groups, float* amax);
void amax_reference(const uint16_t* x, int64_t rows, int64_t cols, ScaleGroups groups, float* amax);
void cast_reference(const float* x, int64_t rows, int64_t cols, ScaleGroups groups,
                    const float* scale, Float8Format format, uint8_t* codes, float* amax);
void cast_reference(const uint16_t* x, int64_t rows, int64_t cols, ScaleGroups groups,
                    const float* scale, Float8Format format, uint8_t* codes, float* amax);
void decode_reference(const uint8_t* codes, int64_t rows, int64_t cols, ScaleGroups groups,
                      const float* inverse_scale, Float8Format format, float* x);
void decode_reference(const uint8_t* codes, int64_t rows, int64_t cols, ScaleGroups groups,
                      const float* inverse_scale, Float8Format format, uint16_t* x);

}  // namespace narrowgauge::float8::kernels

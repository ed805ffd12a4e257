#pragma once

#include <cstdint>

#include "cuda/stream_handle.h"

// Casts of a matrix to fp8 and the magnitudes they need, on a GPU: device memory, enqueued on
// `stream`. T is float, or uint16_t for bf16; x: [rows, cols], contiguous. Everything here gives
// the same bits each time.
namespace narrowgauge::float8::kernels {

// Which elements share a number: element (r, c) has entry (r / rows) * stride + c / cols. rows and
// cols: 1, 128, or the matrix's.
struct Groups {
  int64_t rows = 1;
  int64_t cols = 1;
  int64_t stride = 0;
};

// Whether the current GPU has fp8 conversions and products (compute capability 9.0 or later).
bool has_float8_instructions();

enum class Format { kE4m3, kE5m2 };

// max |x| of each group, exact; NaN where a group holds one. amax: one fp32 a group, out;
// num_groups is how many there are.
template <typename T>
void tensor_to_amax(const T* x, int64_t rows, int64_t cols, Groups groups, float* amax,
                    int64_t num_groups, cuda::StreamHandle stream);

// The same of every row and of every column, from one read of x. amax: [rows + cols], the rows
// first.
template <typename T>
void row_and_column_amax(const T* x, int64_t rows, int64_t cols, float* amax,
                         cuda::StreamHandle stream);

// scale = largest / max(amax, 1e-12) in fp64, rounded to fp32, and for power_of_2 exp2(floor(log2))
// of that, log2 rounded to fp32; inverse_scale = 1 / scale. largest: of the format. All: [count].
void amax_to_scale(const float* amax, double largest, bool power_of_2, float* scale,
                   float* inverse_scale, int64_t count, cuda::StreamHandle stream);

// One of a cast's outputs: codes of x * scale, clamped to the format's largest value and rounded to
// nearest even (NaN stays NaN).
struct CastOutput {
  uint8_t* codes = nullptr;  // null: not wanted
  const float* scale = nullptr;
  Groups groups;
};

// by_row: codes [rows, cols]; by_column: codes [cols, rows], the transposed matrix, which a product
// over dim 0 reads. Both are made from one read of x. A group of by_row is a row, 128 of it, or
// more; of by_column a column, 128 of it, or more. amax: null, or max |x| of all of x, out.
template <typename T>
void cast(const T* x, int64_t rows, int64_t cols, Format format, const CastOutput& by_row,
          const CastOutput& by_column, float* amax, cuda::StreamHandle stream);

// Of `count` codes that cast made of x: counts[0] have the largest magnitude, counts[1] are zero
// where x is not.
template <typename T>
void count_losses(const T* x, const uint8_t* codes, int64_t count, Format format, int64_t* counts,
                  cuda::StreamHandle stream);

// to[c, r] = from[r, c], bytes; from: [rows, cols].
void transpose_codes(const uint8_t* from, int64_t rows, int64_t cols, uint8_t* to,
                     cuda::StreamHandle stream);

}  // namespace narrowgauge::float8::kernels

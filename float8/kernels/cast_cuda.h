#pragma once

#include <cstdint>

#include "cuda/stream_handle.h"

// Casts of a matrix to fp8 and the magnitudes they need, on a GPU: device memory, enqueued on
// `stream`. T is float, or uint16_t for bf16; x: [rows, cols], contiguous. Everything here gives
// the same bits each time.
namespace narrowgauge::float8::kernels {

// Which elements share a number: element (r, c) has entry (r / rows) * stride + c / cols. cols: 1,
// a multiple of 16, or the matrix's.
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

// scale = largest / max(amax, 1e-12) in fp64, rounded to fp32, and inverse_scale = 1 / scale;
// largest: of the format. All: [count].
void amax_to_scale(const float* amax, double largest, float* scale, float* inverse_scale,
                   int64_t count, cuda::StreamHandle stream);

// One of a cast's outputs: codes of x * scale, clamped to the format's largest value and rounded to
// nearest even (NaN stays NaN).
struct CastOutput {
  uint8_t* codes = nullptr;  // null: not wanted
  const float* scale = nullptr;
  Groups groups;
};

// by_row: codes [rows, cols]; by_column: codes [cols, rows], the transposed matrix, which a product
// over dim 0 reads. Both are made from one read of x.
template <typename T>
void cast(const T* x, int64_t rows, int64_t cols, Format format, const CastOutput& by_row,
          const CastOutput& by_column, cuda::StreamHandle stream);

}  // namespace narrowgauge::float8::kernels

#pragma once

#include <cstdint>

#include "float8/kernels/float8_math.h"

// C = A B^T of fp8 codes on processors with AVX512-BF16: codes become bf16 (exact) while operands
// are brought into the order in which the product reads them, so that no decoded copy of a whole
// operand A exists; pairs of products are summed in fp32. A is [m, k], B is [n, k].
namespace narrowgauge::float8::kernels {

// Whether this processor can run scaled_gemm.
bool has_scaled_gemm();

// A matrix of codes: one of the two strides is 1.
struct Codes {
  const uint8_t* data;
  Float8Format format;
  int64_t row_stride;
  int64_t k_stride;
};

// Inverse scales of an operand: that of row r and block b of the contracted dimension is
// data[(r >> row_shift) * row_stride + b * block_stride].
struct InverseScales {
  const float* data;
  int64_t row_shift;
  int64_t row_stride;
  int64_t block_stride;
};

inline constexpr int64_t kPanelCols = 32;  // columns of C that one packed panel of B serves
inline constexpr int64_t kTileRows = 12;   // rows of C that one step computes

// B rows [32 * panel, 32 * panel + 32) for each panel in [first_panel, last_panel), decoded, in the
// order k / 2, row, k % 2; rows and k beyond the matrix are zero. packed: where panel 0 begins,
// each panel packed_panel_size(k) elements.
int64_t packed_panel_size(int64_t k);
void pack_panels(const Codes& b, int64_t n, int64_t k, int64_t first_panel, int64_t last_panel,
                 uint16_t* packed);

enum class OutputType { kFloat, kBFloat16 };

struct GemmOutput {
  void* data;  // C, row-major
  int64_t row_stride;
  OutputType type;
  bool accumulate;    // C += instead of C =
  const float* bias;  // [n] or null
};

// Rows [first_row, last_row) of C, columns of panels [first_panel, last_panel). k_block: elements
// of k that share a scale (a divisor of 128, even), or 0 where all do. scratch: scratch_size()
// floats.
int64_t scratch_size();
void scaled_gemm(const Codes& a, const InverseScales& a_scales, const uint16_t* packed_b,
                 const InverseScales& b_scales, int64_t n, int64_t k, int64_t k_block,
                 int64_t first_row, int64_t last_row, int64_t first_panel, int64_t last_panel,
                 const GemmOutput& output, float* scratch);

}  // namespace narrowgauge::float8::kernels

#pragma once

#include <cstdint>

namespace narrowgauge::optim::kernels {

// Note: codes by arithmetic
//
// The values of these formats are evenly spaced for long runs, at distances that grow with the
// magnitude y: their rank by magnitude is a concave function, within an octave the least of three
// lines, and where the largest value is off its run (1 in the dynamic tree) one line above it,
//   rank(y) = floor(max(min over k of slope[k] y + offset[k], peak_slope y + peak_offset)),
// right except within kCodeLinesMargin of an integer, where the table of cells decides. The
// margin covers what multiplying by 1 / scale, in place of dividing, and fp32 lines add; since
// lines are monotone it is enough to test them at each boundary, which Codebook does when it makes
// them.
inline constexpr int kCodeLines = 3;
inline constexpr int kCodeLinesShift = 16;
inline constexpr int32_t kCodeLinesOne = 1 << kCodeLinesShift;  // one rank, in fixed point
inline constexpr int32_t kCodeLinesMargin = 16;

struct CodeLines {
  // In fixed point, by the low five bits of the exponent of y: no format has 32 octaves.
  float slope[kCodeLines][32] = {};
  float offset[kCodeLines][32] = {};
  float peak_slope = 0.0F;
  float peak_offset = 0.0F;
  float smallest = 0.0F;  // lesser magnitudes, and what is negative without a sign, count as this
  bool is_signed = false;
  uint8_t zero = 0;  // the code of rank 0; of others zero + rank
  // A negative value has the code negative_base - (rank ^ negative_flip), at least 0.
  uint8_t negative_base = 0;
  uint8_t negative_flip = 0;
};

// A number format of at most 256 values, as kernels read it. Values are those of x / scale.
//
// Encoding is one look-up and one comparison, exact by construction. The upper 16 bits of an fp32
// name its cell; cells are so narrow that at most one boundary between two codes falls into each:
//   cell = below | above << 8 | boundary << 16;   code = lower 16 bits >= boundary ? above : below
// Magnitudes up to first_cell round alike, those from last_cell on (more than the largest value,
// infinity, NaN) too; negative ones follow the positive.
struct CodebookTable {
  const float* values = nullptr;    // [256], by code
  const uint32_t* cells = nullptr;  // [2 * (last_cell - first_cell + 1)]
  int32_t first_cell = 0;
  int32_t last_cell = 0;
  float scale_divisor = 1.0F;  // scale = largest magnitude of a block / this
  // The same for processors that permute registers; null on a GPU.
  const uint8_t* planes = nullptr;  // [4, 256]: byte b of values[code]
  const CodeLines* lines = nullptr;
};

// Scale of a block whose magnitudes' largest has these bits; never below that of 1e-12. NaN and
// infinity pass.
float block_scale(uint32_t amax_bits, const CodebookTable& table);

// out: [count] = values[codes] * scale. packed: two 4-bit codes a byte, the even index in the
// upper half; count even.
void decode(float* out, const uint8_t* codes, int64_t count, float scale,
            const CodebookTable& table);
void decode_packed(float* out, const uint8_t* codes, int64_t count, float scale,
                   const CodebookTable& table);

// codes of x / scale, whose magnitudes are at most the format's largest, but for rounding.
void encode(uint8_t* codes, const float* x, int64_t count, float scale, const CodebookTable& table);
void encode_packed(uint8_t* codes, const float* x, int64_t count, float scale,
                   const CodebookTable& table);

}  // namespace narrowgauge::optim::kernels

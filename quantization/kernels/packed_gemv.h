#pragma once

#include <cstdint>

// y = W x for few x at a time, W in packed codes of 4 or 8 bits that are read once: what decoding a
// token costs is reading the weights. Products and sums in fp32.
//
// A row of W is blocks of kBlock codes. Of 4 bits, a block is 16 bytes, as in GGUF's Q4_0: byte j
// holds code j in its low half, code j + 16 in its high half. Of 8 bits, a block is 32 bytes, one a
// code. Codes beyond the row's end are padding; x is zero there.
//
// w[r, c] = value(code[r, c]) * scale[r, c / group_size] + offset[r, c / group_size]
namespace narrowgauge::quantization::kernels {

inline constexpr int64_t kBlock = 32;
inline constexpr int64_t kMaxGemvTokens = 4;  // that one pass over the weights serves

enum class CodeFormat {
  kInt4,  // value = code - 8
  kE2m1,  // OCP MX fp4: sign, 2 bits of exponent, 1 of mantissa; value as said, up to 6
  kInt8,  // two's complement
  kE4m3,  // the NaN codes are not looked for: 0x7f reads as 480
  kE5m2,  // infinities and NaN are not looked for
};

constexpr int64_t block_bytes(CodeFormat format) {
  return format == CodeFormat::kInt4 || format == CodeFormat::kE2m1 ? kBlock / 2 : kBlock;
}

struct PackedRows {
  CodeFormat format;
  const uint8_t* codes;  // [rows, num_blocks * block_bytes(format)]
  const float* scale;    // [rows, num_groups]
  const float* offset;   // the same, or null where it is 0
  int64_t num_blocks;    // of a row
  int64_t num_groups;    // of a row: num_blocks * kBlock / group_size, rounded up
  int64_t group_size;    // 16, or a multiple of kBlock
};

// x of num_tokens <= kMaxGemvTokens rows, fp32, each num_blocks * kBlock long, zero-padded.
struct GemvInput {
  const float* x;
  const float* group_sums;  // [num_tokens, num_groups], of x; only read where there are offsets
  int64_t num_tokens;
};

// y[t * y_stride + r] for rows r in [first_row, last_row).
void packed_gemv(const PackedRows& w, const GemvInput& input, int64_t first_row, int64_t last_row,
                 float* y, int64_t y_stride);

// The same by plain loops, whatever the processor.
void packed_gemv_portable(const PackedRows& w, const GemvInput& input, int64_t first_row,
                          int64_t last_row, float* y, int64_t y_stride);

// Rows [first_row, last_row) as numbers: out[(r - first_row) * num_blocks * kBlock + c], T float,
// or uint16_t for bf16 (rounded to nearest even).
void unpack_rows(const PackedRows& w, int64_t first_row, int64_t last_row, float* out);
void unpack_rows(const PackedRows& w, int64_t first_row, int64_t last_row, uint16_t* out);

}  // namespace narrowgauge::quantization::kernels

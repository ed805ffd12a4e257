#pragma once

#include <cstdint>

namespace narrowgauge::optim::kernels {

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

// codes of x / scale.
void encode(uint8_t* codes, const float* x, int64_t count, float scale, const CodebookTable& table);
void encode_packed(uint8_t* codes, const float* x, int64_t count, float scale,
                   const CodebookTable& table);

}  // namespace narrowgauge::optim::kernels

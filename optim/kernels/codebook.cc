#include "optim/kernels/codebook.h"

#include <algorithm>
#include <bit>

#include "optim/kernels/codebook_avx512.h"
#include "vectorize/target_clones.h"

// Table look-ups bound both directions where registers cannot be permuted (codebook_avx512.cc).

namespace narrowgauge::optim::kernels {
namespace {

constexpr int64_t kPiece = 256;

// entries: [count] those of x / scale; lows: the lower 16 bits of the same. count <= kPiece
NG_INLINE void look_up(uint32_t* __restrict entries, uint16_t* __restrict lows,
                       const float* __restrict x, int64_t count, float scale,
                       const CodebookTable& table) {
  const int32_t first_cell = table.first_cell;
  const int32_t last_cell = table.last_cell;
  const int32_t num_cells = last_cell - first_cell + 1;
  const uint32_t* __restrict cells = table.cells;
  uint16_t indices[kPiece];
  for (int64_t i = 0; i < count; ++i) {
    const auto bits = std::bit_cast<int32_t>(x[i] / scale);
    int32_t cell = (bits >> 16) & 0x7fff;
    cell = cell < first_cell ? first_cell : cell;
    cell = cell > last_cell ? last_cell : cell;
    indices[i] = static_cast<uint16_t>(cell - first_cell + (bits < 0 ? num_cells : 0));
    lows[i] = static_cast<uint16_t>(bits);
  }
  for (int64_t i = 0; i < count; ++i) {
    entries[i] = cells[indices[i]];
  }
}

NG_INLINE uint32_t chosen_code(uint32_t entry, uint16_t low) {
  return (low >= (entry >> 16) ? entry >> 8 : entry) & 0xffU;
}

// count <= kPiece
NG_TARGET_CLONES void encode_piece(uint8_t* __restrict codes, const float* __restrict x,
                                   int64_t count, float scale, const CodebookTable& table) {
  uint32_t entries[kPiece];
  uint16_t lows[kPiece];
  look_up(entries, lows, x, count, scale, table);
  for (int64_t i = 0; i < count; ++i) {
    codes[i] = static_cast<uint8_t>(chosen_code(entries[i], lows[i]));
  }
}

NG_TARGET_CLONES void encode_packed_piece(uint8_t* __restrict codes, const float* __restrict x,
                                          int64_t count, float scale, const CodebookTable& table) {
  uint32_t entries[kPiece];
  uint16_t lows[kPiece];
  look_up(entries, lows, x, count, scale, table);
  for (int64_t i = 0; i < count / 2; ++i) {
    codes[i] = static_cast<uint8_t>(chosen_code(entries[2 * i], lows[2 * i]) << 4 |
                                    chosen_code(entries[2 * i + 1], lows[2 * i + 1]));
  }
}

}  // namespace

float block_scale(uint32_t amax_bits, const CodebookTable& table) {
  // As integers, NaN is above infinity is above every number.
  const uint32_t clipped = std::max(amax_bits, std::bit_cast<uint32_t>(1e-12F));
  return std::bit_cast<float>(clipped) / table.scale_divisor;
}

void decode(float* __restrict out, const uint8_t* __restrict codes, int64_t count, float scale,
            const CodebookTable& table) {
  const float* values = table.values;
  int64_t i = has_codebook_avx512() ? decode_avx512(out, codes, count, scale, table) : 0;
  for (; i < count; ++i) {
    out[i] = values[codes[i]] * scale;
  }
}

void decode_packed(float* __restrict out, const uint8_t* __restrict codes, int64_t count,
                   float scale, const CodebookTable& table) {
  const float* values = table.values;
  int64_t i = has_codebook_avx512() ? decode_packed_avx512(out, codes, count, scale, table) : 0;
  for (; i < count; i += 2) {
    out[i] = values[codes[i / 2] >> 4] * scale;
    out[i + 1] = values[codes[i / 2] & 15] * scale;
  }
}

void encode(uint8_t* codes, const float* x, int64_t count, float scale,
            const CodebookTable& table) {
  int64_t i =
      has_codebook_avx512() ? encode_avx512(codes, x, count, scale, table, encode_piece) : 0;
  for (; i < count; i += kPiece) {
    encode_piece(codes + i, x + i, std::min(kPiece, count - i), scale, table);
  }
}

void encode_packed(uint8_t* codes, const float* x, int64_t count, float scale,
                   const CodebookTable& table) {
  int64_t i = has_codebook_avx512()
                  ? encode_packed_avx512(codes, x, count, scale, table, encode_packed_piece)
                  : 0;
  for (; i < count; i += kPiece) {
    encode_packed_piece(codes + i / 2, x + i, std::min(kPiece, count - i), scale, table);
  }
}

}  // namespace narrowgauge::optim::kernels

#include "optim/kernels/codebook.h"

#include <algorithm>
#include <bit>

#include "vectorize/target_clones.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Table look-ups bound both directions. Decoding has AVX-512 code of its own: a table of 256 fits
// into 16 registers and permutations read it twice as fast as loads do; gathers are slower than
// loads (Zen 5: 0.13, 0.20 and 0.37 ns a value).

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

#if defined(__x86_64__)

// The first count / 16 * 16 values; returns their number.
__attribute__((target("avx512f"))) int64_t decode_avx512(float* __restrict out,
                                                         const uint8_t* __restrict codes,
                                                         int64_t count, float scale,
                                                         const float* __restrict values) {
  __m512 part[16];
  for (int k = 0; k < 16; ++k) {
    part[k] = _mm512_loadu_ps(values + 16 * k);
  }
  const __m512 scales = _mm512_set1_ps(scale);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    // The form with a mask: GCC 12 warns inside the plain one.
    const __m512i index = _mm512_maskz_cvtepu8_epi32(
        0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i)));
    __m512 read[8];  // bits 0 to 4 of the index choose here, the others below
    for (int k = 0; k < 8; ++k) {
      read[k] = _mm512_permutex2var_ps(part[2 * k], index, part[2 * k + 1]);
    }
    for (int bit = 5, left = 4; left > 0; ++bit, left /= 2) {
      const __mmask16 is_upper = _mm512_test_epi32_mask(index, _mm512_set1_epi32(1 << bit));
      for (int k = 0; k < left; ++k) {
        read[k] = _mm512_mask_blend_ps(is_upper, read[2 * k], read[2 * k + 1]);
      }
    }
    _mm512_storeu_ps(out + i, _mm512_mul_ps(read[0], scales));
  }
  return i;
}

#else

int64_t decode_avx512(float*, const uint8_t*, int64_t, float, const float*) { return 0; }

#endif

bool has_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") != 0;
#else
  return false;
#endif
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
  int64_t i = has_avx512() ? decode_avx512(out, codes, count, scale, values) : 0;
  for (; i < count; ++i) {
    out[i] = values[codes[i]] * scale;
  }
}

void decode_packed(float* __restrict out, const uint8_t* __restrict codes, int64_t count,
                   float scale, const CodebookTable& table) {
  const float* values = table.values;
  for (int64_t i = 0; i < count / 2; ++i) {
    out[2 * i] = values[codes[i] >> 4] * scale;
    out[2 * i + 1] = values[codes[i] & 15] * scale;
  }
}

void encode(uint8_t* codes, const float* x, int64_t count, float scale,
            const CodebookTable& table) {
  for (int64_t i = 0; i < count; i += kPiece) {
    encode_piece(codes + i, x + i, std::min(kPiece, count - i), scale, table);
  }
}

void encode_packed(uint8_t* codes, const float* x, int64_t count, float scale,
                   const CodebookTable& table) {
  for (int64_t i = 0; i < count; i += kPiece) {
    encode_packed_piece(codes + i / 2, x + i, std::min(kPiece, count - i), scale, table);
  }
}

}  // namespace narrowgauge::optim::kernels

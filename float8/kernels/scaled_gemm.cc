#include "float8/kernels/scaled_gemm.h"

#include <algorithm>
#include <array>

#include "nn/kernels/vector_math.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// One of the few files with intrinsics: GCC does not find VDPBF16PS from a loop.
//
// A tile is kTileRows x kPanelCols sums in 24 of the 32 registers. What it reads a step of two k:
// two registers of a packed panel of B, and kTileRows pairs of A, each broadcast. Cost of bringing
// the operands into that order, beside 2 m n k of the product: m k codes of A decoded once for each
// kGroupPanels panels, n k codes of B decoded once.
namespace narrowgauge::float8::kernels {

#if defined(__x86_64__)

bool has_scaled_gemm() {
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vl");
}

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,fma")

namespace {

using nn::kernels::from_float;
using nn::kernels::to_float;

// Elements of k at a time, so that a panel of B (24 KB) stays in the first-level cache.
constexpr int64_t kChunk = 384;
constexpr int64_t kBlockRows = 8 * kTileRows;  // rows of A decoded at a time
constexpr int64_t kGroupPanels = 16;           // panels whose sums are kept at a time: 192 KB
// Pairs of bf16 (32 bits) from one row, or one pair of k, of a decoded A to the next; padded, since
// a power of two would put all rows into few sets of the cache.
constexpr int64_t kPairsARow = kChunk / 2 + 16;
constexpr int64_t kPairsAStep = kBlockRows + 16;
constexpr int64_t kPairsOfA = std::max(kBlockRows * kPairsARow, kChunk / 2 * kPairsAStep);
constexpr int64_t kSums = kBlockRows * kGroupPanels * kPanelCols;

// bf16 of the 128 magnitudes, split into bytes that are looked up 64 at a time.
struct DecodeTables {
  __m512i low[2];
  __m512i high[2];
};

template <Float8Format format>
DecodeTables decode_tables() {
  alignas(64) std::array<uint8_t, 128> low;
  alignas(64) std::array<uint8_t, 128> high;
  for (size_t code = 0; code < low.size(); ++code) {
    const uint16_t value = decode_bf16<format>(static_cast<uint8_t>(code));
    low[code] = static_cast<uint8_t>(value);
    high[code] = static_cast<uint8_t>(value >> 8);
  }
  return {{_mm512_load_si512(low.data()), _mm512_load_si512(low.data() + 64)},
          {_mm512_load_si512(high.data()), _mm512_load_si512(high.data() + 64)}};
}

DecodeTables decode_tables(Float8Format format) {
  return format == Float8Format::kE4M3 ? decode_tables<Float8Format::kE4M3>()
                                       : decode_tables<Float8Format::kE5M2>();
}

// 64 codes to 64 bf16, in order.
NG_INLINE void decode_64(const DecodeTables& tables, __m512i codes, uint16_t* out) {
  // Unpacking works within 128-bit lanes: this puts the quarters where it looks for them.
  const __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
  const __m512i c = _mm512_permutexvar_epi64(order, codes);
  const __m512i low = _mm512_permutex2var_epi8(tables.low[0], c, tables.low[1]);
  const __m512i magnitude = _mm512_permutex2var_epi8(tables.high[0], c, tables.high[1]);
  const __m512i sign = _mm512_and_si512(c, _mm512_set1_epi8(static_cast<char>(0x80)));
  const __m512i high = _mm512_or_si512(magnitude, sign);
  _mm512_storeu_si512(out, _mm512_unpacklo_epi8(low, high));
  _mm512_storeu_si512(out + 32, _mm512_unpackhi_epi8(low, high));
}

// The first `count` of 64 codes, zeros behind them.
NG_INLINE __m512i load_codes(const uint8_t* codes, int64_t count) {
  return count >= 64 ? _mm512_loadu_si512(codes)
                     : _mm512_maskz_loadu_epi8((uint64_t{1} << count) - 1, codes);
}

// Codes 0 to 31 of two rows, side by side: first[0], second[0], first[1], ... `second` may be null.
NG_INLINE __m512i interleave(const uint8_t* first, const uint8_t* second, int64_t count) {
  const auto mask = static_cast<__mmask32>(count >= 32 ? 0xffffffffU : (1U << count) - 1);
  const __m512i low = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(mask, first));
  if (second == nullptr) {
    return low;
  }
  const __m512i high = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(mask, second));
  return _mm512_or_si512(low, _mm512_slli_epi16(high, 8));
}

// Panel of rows that are contiguous along k: pairs of codes are transposed, then decoded.
void pack_contiguous(const DecodeTables& tables, const uint8_t* codes, int64_t row_stride,
                     int64_t num_rows, int64_t k, uint16_t* packed) {
  constexpr int64_t kPairs = 32;
  alignas(64) uint16_t pairs[kPairs][kPanelCols] = {};
  for (int64_t begin = 0; begin < k; begin += 2 * kPairs) {
    const int64_t count = std::min(2 * kPairs, k - begin);
    for (int64_t row = 0; row < num_rows; ++row) {
      const uint8_t* from = codes + row * row_stride + begin;
      for (int64_t pair = 0; pair < count / 2; ++pair) {
        pairs[pair][row] = static_cast<uint16_t>(from[2 * pair] | (from[2 * pair + 1] << 8));
      }
      if (count % 2 != 0) {
        pairs[count / 2][row] = from[count - 1];
      }
    }
    for (int64_t pair = 0; pair < (count + 1) / 2; ++pair) {
      decode_64(tables, _mm512_load_si512(pairs[pair]), packed);
      packed += 2 * kPanelCols;
    }
  }
}

// Panel of rows that lie side by side.
void pack_strided(const DecodeTables& tables, const uint8_t* codes, int64_t k_stride,
                  int64_t num_rows, int64_t k, uint16_t* packed) {
  for (int64_t i = 0; i < k; i += 2) {
    const uint8_t* first = codes + i * k_stride;
    decode_64(tables, interleave(first, i + 1 < k ? first + k_stride : nullptr, num_rows), packed);
    packed += 2 * kPanelCols;
  }
}

// Rows [row, row + kBlockRows) and k [begin, begin + count) of A as pairs of bf16, zeros beyond
// num_rows: a row after another (kPairsARow), or where k is strided a pair of k after another
// (kPairsAStep).
void decode_block(const DecodeTables& tables, const Codes& a, int64_t row, int64_t num_rows,
                  int64_t begin, int64_t count, uint32_t* pairs) {
  const uint8_t* codes = a.data + row * a.row_stride + begin * a.k_stride;
  const int64_t padded_rows = (num_rows + kTileRows - 1) / kTileRows * kTileRows;
  auto* out = reinterpret_cast<uint16_t*>(pairs);
  if (a.k_stride == 1) {
    for (int64_t r = 0; r < padded_rows; ++r) {
      for (int64_t i = 0; i < count; i += 64) {
        const int64_t left = r < num_rows ? count - i : 0;
        decode_64(tables, load_codes(codes + r * a.row_stride + i, left),
                  out + 2 * r * kPairsARow + i);
      }
    }
    return;
  }
  for (int64_t i = 0; i < count; i += 2) {
    const uint8_t* first = codes + i * a.k_stride;
    const uint8_t* second = i + 1 < count ? first + a.k_stride : nullptr;
    for (int64_t r = 0; r < padded_rows; r += 32) {
      const int64_t left = std::max<int64_t>(0, num_rows - r);
      decode_64(tables, interleave(first + r, second == nullptr ? second : second + r, left),
                out + i * kPairsAStep + 2 * r);
    }
  }
}

// What becomes of a tile's sums: stored, or added to what is there, after a product with the scales
// of this block of k if there are any.
struct TileUpdate {
  bool add;
  const float* row_scales;  // [kTileRows] or null
  const float* col_scales;  // [kPanelCols]
};

// sums: [kTileRows][kPanelCols].
template <int64_t row_stride, int64_t k_stride>
void multiply_tile(const uint32_t* a, const uint16_t* b, int64_t num_pairs,
                   const TileUpdate& update, float* sums) {
  __m512 sum[kTileRows][2];
#pragma GCC unroll 12
  for (int64_t row = 0; row < kTileRows; ++row) {
    sum[row][0] = _mm512_setzero_ps();
    sum[row][1] = _mm512_setzero_ps();
  }
  for (int64_t pair = 0; pair < num_pairs; ++pair) {
    const auto left = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b));
    const auto right = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + kPanelCols));
#pragma GCC unroll 12
    for (int64_t row = 0; row < kTileRows; ++row) {
      const auto x =
          reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a[row * row_stride])));
      sum[row][0] = _mm512_dpbf16_ps(sum[row][0], x, left);
      sum[row][1] = _mm512_dpbf16_ps(sum[row][1], x, right);
    }
    a += k_stride;
    b += 2 * kPanelCols;
  }
#pragma GCC unroll 12
  for (int64_t row = 0; row < kTileRows; ++row) {
#pragma GCC unroll 2
    for (int64_t half = 0; half < 2; ++half) {
      float* to = sums + row * kPanelCols + half * 16;
      __m512 value = sum[row][half];
      if (update.row_scales != nullptr) {
        const __m512 cols = _mm512_loadu_ps(update.col_scales + half * 16);
        value = _mm512_mul_ps(_mm512_mul_ps(value, _mm512_set1_ps(update.row_scales[row])), cols);
      }
      if (update.add) {
        value = _mm512_add_ps(value, _mm512_loadu_ps(to));
      }
      _mm512_storeu_ps(to, value);
    }
  }
}

// scales of rows [first, first + count) of a block of k; 0 beyond num_rows.
NG_INLINE void gather_scales(const InverseScales& scales, int64_t first, int64_t count,
                             int64_t num_rows, int64_t block, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = (first + i) >> scales.row_shift;
    out[i] = first + i < num_rows
                 ? scales.data[row * scales.row_stride + block * scales.block_stride]
                 : 0.0F;
  }
}

template <typename T>
NG_INLINE void write_row(const float* sums, float row_scale, const float* col_scales,
                         const float* bias, int64_t count, bool accumulate, T* out) {
  for (int64_t i = 0; i < count; ++i) {
    float value = sums[i] * row_scale * col_scales[i];
    value += bias[i];
    value += accumulate ? to_float(out[i]) : 0.0F;
    out[i] = from_float<T>(value);
  }
}

// One call of scaled_gemm, so that its steps need not pass everything along.
struct Product {
  const Codes& a;
  const InverseScales& a_scales;
  const uint16_t* packed_b;
  const InverseScales& b_scales;
  int64_t n;
  int64_t k;
  int64_t k_block;
  int64_t last_row;
  const GemmOutput& output;
  uint32_t* pairs;
  float* sums;

  int64_t block_rows(int64_t row) const { return std::min(kBlockRows, last_row - row); }

  // The sums of kBlockRows rows and one panel grow by k [begin, begin + count).
  void multiply_panel(int64_t row, int64_t panel, int64_t begin, int64_t count,
                      float* panel_sums) const {
    const uint16_t* b = packed_b + panel * packed_panel_size(k) + begin * kPanelCols;
    const int64_t step = k_block == 0 ? count : k_block;
    alignas(64) float col_scales[kPanelCols];
    float row_scales[kTileRows];
    for (int64_t i = 0; i < count; i += step) {
      const int64_t num_pairs = (std::min(step, count - i) + 1) / 2;
      const int64_t block = k_block == 0 ? 0 : (begin + i) / k_block;
      if (k_block != 0) {
        gather_scales(b_scales, panel * kPanelCols, kPanelCols, n, block, col_scales);
      }
      TileUpdate update{begin + i > 0, nullptr, col_scales};
      for (int64_t r = 0; r < block_rows(row); r += kTileRows) {
        if (k_block != 0) {
          gather_scales(a_scales, row + r, kTileRows, last_row, block, row_scales);
          update.row_scales = row_scales;
        }
        float* to = panel_sums + r * kPanelCols;
        const uint16_t* from = b + i * kPanelCols;
        if (a.k_stride == 1) {
          multiply_tile<kPairsARow, 1>(pairs + r * kPairsARow + i / 2, from, num_pairs, update, to);
        } else {
          multiply_tile<1, kPairsAStep>(pairs + r + i / 2 * kPairsAStep, from, num_pairs, update,
                                        to);
        }
      }
    }
  }

  void write_panel(int64_t row, int64_t panel, const float* panel_sums) const {
    const int64_t col = panel * kPanelCols;
    const int64_t count = std::min(kPanelCols, n - col);
    float row_scales[kBlockRows];
    float col_scales[kPanelCols];
    float bias[kPanelCols] = {};
    std::fill_n(row_scales, kBlockRows, 1.0F);
    std::fill_n(col_scales, kPanelCols, 1.0F);
    if (k_block == 0) {
      gather_scales(a_scales, row, block_rows(row), last_row, 0, row_scales);
      gather_scales(b_scales, col, count, n, 0, col_scales);
    }
    if (output.bias != nullptr) {
      std::copy_n(output.bias + col, count, bias);
    }
    for (int64_t r = 0; r < block_rows(row); ++r) {
      const int64_t at = (row + r) * output.row_stride + col;
      const float* from = panel_sums + r * kPanelCols;
      if (output.type == OutputType::kFloat) {
        write_row(from, row_scales[r], col_scales, bias, count, output.accumulate,
                  static_cast<float*>(output.data) + at);
      } else {
        write_row(from, row_scales[r], col_scales, bias, count, output.accumulate,
                  static_cast<uint16_t*>(output.data) + at);
      }
    }
  }
};

}  // namespace

int64_t packed_panel_size(int64_t k) { return (k + 1) / 2 * 2 * kPanelCols; }

int64_t scratch_size() { return kPairsOfA + kSums; }

void pack_panels(const Codes& b, int64_t n, int64_t k, int64_t first_panel, int64_t last_panel,
                 uint16_t* packed) {
  const DecodeTables tables = decode_tables(b.format);
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    const int64_t row = panel * kPanelCols;
    const int64_t num_rows = std::min(kPanelCols, n - row);
    uint16_t* to = packed + panel * packed_panel_size(k);
    if (b.k_stride == 1) {
      pack_contiguous(tables, b.data + row * b.row_stride, b.row_stride, num_rows, k, to);
    } else {
      pack_strided(tables, b.data + row, b.k_stride, num_rows, k, to);
    }
  }
}

void scaled_gemm(const Codes& a, const InverseScales& a_scales, const uint16_t* packed_b,
                 const InverseScales& b_scales, int64_t n, int64_t k, int64_t k_block,
                 int64_t first_row, int64_t last_row, int64_t first_panel, int64_t last_panel,
                 const GemmOutput& output, float* scratch) {
  const DecodeTables tables = decode_tables(a.format);
  const Product product{a,
                        a_scales,
                        packed_b,
                        b_scales,
                        n,
                        k,
                        k_block,
                        last_row,
                        output,
                        reinterpret_cast<uint32_t*>(scratch),
                        scratch + kPairsOfA};
  for (int64_t row = first_row; row < last_row; row += kBlockRows) {
    for (int64_t group = first_panel; group < last_panel; group += kGroupPanels) {
      const int64_t group_end = std::min(group + kGroupPanels, last_panel);
      const auto sums_of = [&](int64_t panel) {
        return product.sums + (panel - group) * kBlockRows * kPanelCols;
      };
      for (int64_t begin = 0; begin < k; begin += kChunk) {
        const int64_t count = std::min(kChunk, k - begin);
        decode_block(tables, a, row, product.block_rows(row), begin, count, product.pairs);
        for (int64_t panel = group; panel < group_end; ++panel) {
          product.multiply_panel(row, panel, begin, count, sums_of(panel));
        }
      }
      for (int64_t panel = group; panel < group_end; ++panel) {
        product.write_panel(row, panel, sums_of(panel));
      }
    }
  }
}

#pragma GCC pop_options

#else

bool has_scaled_gemm() { return false; }
int64_t packed_panel_size(int64_t) { return 0; }
int64_t scratch_size() { return 0; }
void pack_panels(const Codes&, int64_t, int64_t, int64_t, int64_t, uint16_t*) {}
void scaled_gemm(const Codes&, const InverseScales&, const uint16_t*, const InverseScales&, int64_t,
                 int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, const GemmOutput&, float*) {}

#endif

}  // namespace narrowgauge::float8::kernels

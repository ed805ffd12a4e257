#include "qat/kernels/affine_fake_quantize.h"

#include <bit>
#include <cstring>
#include <limits>

#include "vectorize/bfloat16.h"
#include "vectorize/target_clones.h"

namespace narrowgauge::qat::kernels {
namespace {

using vectorize::from_float;
using vectorize::to_float;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Of each group of a row.
struct RowQparams {
  float* low;  // smallest and largest value; both NaN where one is not finite
  float* high;
  float* scale;
  float* inverse;  // multiplies x; of kFloatZeroPoint the scale that divides it
  float* zero_point;
};

// Rounds to the arithmetic's dtype. Numbers and the NaNs above only: no carry into the sign.
template <bool bf16>
NG_INLINE float rounded(float x) {
  if constexpr (bf16) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    return std::bit_cast<float>((bits + 0x7fffU + ((bits >> 16) & 1U)) & 0xffff0000U);
  } else {
    return x;
  }
}

// To the nearest integer, ties to even, for |x| < 2^22.
NG_INLINE float nearest(float x) {
  constexpr float kShift = 12582912.0F;  // 1.5 * 2^23
  return (x + kShift) - kShift;
}

NG_INLINE float at_least(float x, float bound) { return x < bound ? bound : x; }

NG_INLINE float clamped(float x, float low, float high) {
  const float above = x < low ? low : x;
  return above > high ? high : above;
}

// An integer of the order of the values: NaN and infinities lie outside of all numbers.
NG_INLINE int16_t ordered(uint16_t x) {
  const auto bits = static_cast<int16_t>(x);
  return static_cast<int16_t>(bits ^ ((bits >> 15) & 0x7fff));
}
NG_INLINE int32_t ordered(float x) {
  const auto bits = std::bit_cast<int32_t>(x);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
NG_INLINE float from_ordered(int16_t key) {
  return to_float(static_cast<uint16_t>(key ^ ((key >> 15) & 0x7fff)));
}
NG_INLINE float from_ordered(int32_t key) {
  return std::bit_cast<float>(key ^ ((key >> 31) & 0x7fffffff));
}

template <typename T>
NG_INLINE void range_of(const T* x, int64_t count, float& low, float& high) {
  using Key = decltype(ordered(T{}));
  constexpr int64_t kLanes = 64 / sizeof(T);
  Key smallest[kLanes];
  Key largest[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) {
    smallest[j] = std::numeric_limits<Key>::max();
    largest[j] = std::numeric_limits<Key>::min();
  }
  const int64_t body = count - count % kLanes;
  for (int64_t i = 0; i < body; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      const Key key = ordered(x[i + j]);
      smallest[j] = key < smallest[j] ? key : smallest[j];
      largest[j] = key > largest[j] ? key : largest[j];
    }
  }
  for (int64_t i = body; i < count; ++i) {
    const Key key = ordered(x[i]);
    smallest[0] = key < smallest[0] ? key : smallest[0];
    largest[0] = key > largest[0] ? key : largest[0];
  }
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t j = 0; j < width; ++j) {
      smallest[j] = smallest[j + width] < smallest[j] ? smallest[j + width] : smallest[j];
      largest[j] = largest[j + width] > largest[j] ? largest[j + width] : largest[j];
    }
  }
  low = from_ordered(smallest[0]);
  high = from_ordered(largest[0]);
  // The difference of two numbers is no NaN; of a NaN or an infinity with itself it is.
  const bool finite = (low - low) + (high - high) == 0;
  low = finite ? low : kNan;
  high = finite ? high : kNan;
}

template <bool bf16>
NG_INLINE void symmetric_qparams(const AffineGrid& grid, int64_t groups, const RowQparams& q) {
  const float half_range = (grid.quant_max - grid.quant_min) / 2;
  for (int64_t g = 0; g < groups; ++g) {
    const float negative = q.low[g] > 0 ? 0 : q.low[g];
    const float positive = q.high[g] < 0 ? 0 : q.high[g];
    const float amax = -negative > positive ? -negative : positive;
    float scale;
    if (grid.range == AffineRange::kSymmetric) {
      scale = rounded<bf16>(amax / half_range);
    } else if (grid.range == AffineRange::kFullRange) {
      scale = rounded<bf16>(amax / -grid.quant_min);
    } else {
      const float below = rounded<bf16>(negative / grid.quant_min);
      const float above = rounded<bf16>(positive / grid.quant_max);
      scale = below > above ? below : above;
    }
    q.scale[g] = at_least(scale, grid.eps);
    q.inverse[g] = rounded<bf16>(1.0F / q.scale[g]);
    q.zero_point[g] = grid.middle;
  }
}

template <bool bf16>
NG_INLINE void asymmetric_qparams(const AffineGrid& grid, int64_t groups, const RowQparams& q) {
  const float steps = grid.quant_max - grid.quant_min;
  for (int64_t g = 0; g < groups; ++g) {
    const float negative = q.low[g] > 0 ? 0 : q.low[g];
    const float positive = q.high[g] < 0 ? 0 : q.high[g];
    const float scale =
        at_least(rounded<bf16>(rounded<bf16>(positive - negative) / steps), grid.eps);
    const float shift = nearest(rounded<bf16>(negative / scale));
    q.scale[g] = scale;
    q.inverse[g] = rounded<bf16>(1.0F / scale);
    q.zero_point[g] = clamped(grid.quant_min - shift, grid.quant_min, grid.quant_max);
  }
}

NG_INLINE void float_qparams(const AffineGrid& grid, int64_t groups, const RowQparams& q) {
  const float steps = grid.quant_max - grid.quant_min;
  for (int64_t g = 0; g < groups; ++g) {
    const float scale = at_least(q.high[g] - q.low[g], grid.eps) / steps;
    const float zero_point = q.low[g] + scale * grid.middle;
    q.inverse[g] = scale;
    q.scale[g] = grid.round_qparams_to_bf16 ? rounded<true>(scale) : scale;
    q.zero_point[g] = grid.round_qparams_to_bf16 ? rounded<true>(zero_point) : zero_point;
  }
}

template <bool bf16, typename In, typename Out>
NG_INLINE void write_group(const In* x, int64_t count, const AffineGrid& grid, float scale,
                           float inverse, float zero_point, Out* y) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const float code = nearest(rounded<bf16>(to_float(x[i]) * inverse)) + zero_point;
    const float kept = clamped(code, grid.quant_min, grid.quant_max) - zero_point;
    y[i] = from_float<Out>(kept * scale);
  }
}

template <typename In, typename Out>
NG_INLINE void write_float_group(const In* x, int64_t count, const AffineGrid& grid, float scale,
                                 float divisor, float zero_point, float lowest, Out* y) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const float code = nearest((to_float(x[i]) - lowest) / divisor);
    const float kept = clamped(code, grid.quant_min, grid.quant_max) - grid.middle;
    y[i] = from_float<Out>(kept * scale + zero_point);
  }
}

// Eight bytes of 0 or 1 to eight bits, the first byte to the lowest.
NG_INLINE uint64_t packed_bits(const uint8_t* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
  return (word * 0x0102040810204080U) >> 56;
}

template <bool bf16, typename T>
NG_INLINE void mark_group(const T* x, int64_t begin, int64_t count, const AffineGrid& grid,
                          float inverse, float zero_point, uint64_t* clipped) {
  constexpr int64_t kChunk = 64;
  for (int64_t start = 0; start < count; start += kChunk) {
    const int64_t size = count - start < kChunk ? count - start : kChunk;
    alignas(64) uint8_t outside[kChunk] = {};
    for (int64_t i = 0; i < size; ++i) {
      const float code = nearest(rounded<bf16>(to_float(x[start + i]) * inverse)) + zero_point;
      outside[i] = static_cast<uint8_t>((code < grid.quant_min) | (code > grid.quant_max));
    }
    uint64_t word = 0;
    for (int64_t i = 0; i < kChunk; i += 8) {
      word |= packed_bits(outside + i) << i;
    }
    const int64_t column = begin + start;
    const int64_t shift = column % 64;
    clipped[column / 64] |= word << shift;
    if (shift + size > 64) {
      clipped[column / 64 + 1] |= word >> (64 - shift);
    }
  }
}

template <typename In, typename Out>
NG_INLINE bool fake_quantize_row(const In* x, int64_t cols, const AffineGrid& grid,
                                 const RowQparams& q, Out* y, uint64_t* clipped) {
  constexpr bool bf16 = sizeof(Out) == 2;
  const int64_t groups = cols / grid.group;
  for (int64_t g = 0; g < groups; ++g) {
    range_of(x + g * grid.group, grid.group, q.low[g], q.high[g]);
  }
  if (grid.range == AffineRange::kFloatZeroPoint) {
    float_qparams(grid, groups, q);
    for (int64_t g = 0; g < groups; ++g) {
      write_float_group(x + g * grid.group, grid.group, grid, q.scale[g], q.inverse[g],
                        q.zero_point[g], q.low[g], y + g * grid.group);
    }
    return false;
  }
  if (grid.range == AffineRange::kAsymmetric) {
    asymmetric_qparams<bf16>(grid, groups, q);
  } else {
    symmetric_qparams<bf16>(grid, groups, q);
  }
  bool any = false;
  for (int64_t g = 0; g < groups; ++g) {
    const In* group = x + g * grid.group;
    // Codes rise with x: the group's ends tell whether any is outside.
    const float first = nearest(rounded<bf16>(q.low[g] * q.inverse[g])) + q.zero_point[g];
    const float last = nearest(rounded<bf16>(q.high[g] * q.inverse[g])) + q.zero_point[g];
    if (clipped != nullptr && (first < grid.quant_min || last > grid.quant_max)) {
      mark_group<bf16>(group, g * grid.group, grid.group, grid, q.inverse[g], q.zero_point[g],
                       clipped);
      any = true;
    }
    write_group<bf16>(group, grid.group, grid, q.scale[g], q.inverse[g], q.zero_point[g],
                      y + g * grid.group);
  }
  return any;
}

template <typename In, typename Out>
NG_INLINE bool fake_quantize_rows(const In* x, int64_t rows, int64_t cols, const AffineGrid& grid,
                                  Out* y, uint64_t* clipped, float* scratch) {
  const int64_t groups = cols == 0 ? 0 : cols / grid.group;
  const RowQparams q = {scratch, scratch + groups, scratch + 2 * groups, scratch + 3 * groups,
                        scratch + 4 * groups};
  bool any = false;
  for (int64_t row = 0; row < rows; ++row) {
    uint64_t* bits = clipped == nullptr ? nullptr : clipped + row * clipped_words(cols);
    any |= fake_quantize_row(x + row * cols, cols, grid, q, y + row * cols, bits);
  }
  return any;
}

template <typename T>
NG_INLINE void zero_clipped_rows(const uint64_t* clipped, int64_t rows, int64_t cols, T* grad) {
  const int64_t words = clipped_words(cols);
  for (int64_t i = 0; i < rows * words; ++i) {
    for (uint64_t bits = clipped[i]; bits != 0; bits &= bits - 1) {
      grad[i / words * cols + i % words * 64 + std::countr_zero(bits)] = T{};
    }
  }
}

}  // namespace

NG_TARGET_CLONES bool fake_quantize_affine(const uint16_t* x, int64_t rows, int64_t cols,
                                           const AffineGrid& grid, uint16_t* y, uint64_t* clipped,
                                           float* scratch) {
  return fake_quantize_rows(x, rows, cols, grid, y, clipped, scratch);
}

NG_TARGET_CLONES bool fake_quantize_affine(const float* x, int64_t rows, int64_t cols,
                                           const AffineGrid& grid, float* y, uint64_t* clipped,
                                           float* scratch) {
  return fake_quantize_rows(x, rows, cols, grid, y, clipped, scratch);
}

NG_TARGET_CLONES bool fake_quantize_affine(const float* x, int64_t rows, int64_t cols,
                                           const AffineGrid& grid, uint16_t* y, uint64_t* clipped,
                                           float* scratch) {
  bool any = false;
  for (int64_t row = 0; row < rows; ++row) {
    uint16_t* to = y + row * cols;
    for (int64_t i = 0; i < cols; ++i) {
      to[i] = from_float<uint16_t>(x[row * cols + i]);
    }
    uint64_t* bits = clipped == nullptr ? nullptr : clipped + row * clipped_words(cols);
    any |= fake_quantize_rows(to, 1, cols, grid, to, bits, scratch);
  }
  return any;
}

void zero_clipped(const uint64_t* clipped, int64_t rows, int64_t cols, uint16_t* grad) {
  zero_clipped_rows(clipped, rows, cols, grad);
}

void zero_clipped(const uint64_t* clipped, int64_t rows, int64_t cols, float* grad) {
  zero_clipped_rows(clipped, rows, cols, grad);
}

}  // namespace narrowgauge::qat::kernels

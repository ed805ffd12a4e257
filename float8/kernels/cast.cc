#include "float8/kernels/cast.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "nn/kernels/vector_math.h"
#include "vectorize/target_clones.h"

namespace narrowgauge::float8::kernels {
namespace {

using nn::kernels::from_float;
using nn::kernels::to_float;

// |x| as an integer: ordered as the values are, NaN above infinity, so that a maximum keeps it.
NG_INLINE int32_t magnitude(float x) { return std::bit_cast<int32_t>(x) & 0x7fffffff; }
NG_INLINE int16_t magnitude(uint16_t x) { return static_cast<int16_t>(x & 0x7fff); }
NG_INLINE int32_t widen(int32_t magnitude) { return magnitude; }
NG_INLINE int32_t widen(int16_t magnitude) { return static_cast<int32_t>(magnitude) << 16; }

NG_INLINE void raise(float* amax, int32_t magnitude) {
  const int32_t old = std::bit_cast<int32_t>(*amax);
  *amax = std::bit_cast<float>(magnitude > old ? magnitude : old);
}

// Calls piece(begin, count, group) for each piece of a row that shares a group.
template <typename Piece>
NG_INLINE void for_each_piece(int64_t cols, int64_t group_cols, const Piece& piece) {
  int64_t group = 0;
  for (int64_t begin = 0; begin < cols; begin += group_cols) {
    piece(begin, std::min(group_cols, cols - begin), group++);
  }
}

NG_INLINE int64_t groups_in(int64_t size, int64_t group) { return (size + group - 1) / group; }

template <typename T>
NG_INLINE void amax_of_piece(const T* x, int64_t count, float* amax) {
  auto top = magnitude(T{});
  for (int64_t i = 0; i < count; ++i) {
    const auto value = magnitude(x[i]);
    top = value > top ? value : top;
  }
  raise(amax, widen(top));
}

template <typename T>
NG_INLINE void amax_of_columns(const T* x, int64_t cols, float* amax) {
  for (int64_t i = 0; i < cols; ++i) {
    raise(amax + i, widen(magnitude(x[i])));
  }
}

template <typename T>
NG_INLINE void amax_rows(const T* x, int64_t rows, int64_t cols, ScaleGroups groups, float* amax) {
  const int64_t groups_a_row = groups_in(cols, groups.cols);
  for (int64_t row = 0; row < rows; ++row) {
    const T* from = x + row * cols;
    float* to = amax + row / groups.rows * groups_a_row;
    if (groups.cols == 1) {
      amax_of_columns(from, cols, to);
    } else {
      for_each_piece(cols, groups.cols,
                     [&](int64_t begin, int64_t count, int64_t group)
                         NG_INLINE_LAMBDA { amax_of_piece(from + begin, count, to + group); });
    }
  }
}

template <Float8Format format, bool with_amax, typename T>
NG_INLINE void cast_rows(const T* x, int64_t rows, int64_t cols, ScaleGroups groups,
                         const float* scale, uint8_t* codes, float* amax) {
  const int64_t groups_a_row = groups_in(cols, groups.cols);
  for (int64_t row = 0; row < rows; ++row) {
    const T* from = x + row * cols;
    uint8_t* to = codes + row * cols;
    const int64_t first_group = row / groups.rows * groups_a_row;
    const float* row_scale = scale + first_group;
    if (groups.cols == 1) {
      for (int64_t i = 0; i < cols; ++i) {
        to[i] = encode<format>(to_float(from[i]) * row_scale[i]);
      }
      if constexpr (with_amax) {
        amax_of_columns(from, cols, amax + first_group);
      }
      continue;
    }
    for_each_piece(cols, groups.cols,
                   [&](int64_t begin, int64_t count, int64_t group) NG_INLINE_LAMBDA {
                     const float factor = row_scale[group];
                     for (int64_t i = begin; i < begin + count; ++i) {
                       to[i] = encode<format>(to_float(from[i]) * factor);
                     }
                     if constexpr (with_amax) {
                       amax_of_piece(from + begin, count, amax + first_group + group);
                     }
                   });
  }
}

template <typename T>
NG_INLINE void cast_any(const T* x, int64_t rows, int64_t cols, ScaleGroups groups,
                        const float* scale, Float8Format format, uint8_t* codes, float* amax) {
  with_format(format, [&](auto constant) NG_INLINE_LAMBDA {
    if (amax == nullptr) {
      cast_rows<constant.value, false>(x, rows, cols, groups, scale, codes, amax);
    } else {
      cast_rows<constant.value, true>(x, rows, cols, groups, scale, codes, amax);
    }
  });
}

template <typename T>
NG_INLINE void decode_any(const uint8_t* codes, int64_t rows, int64_t cols, ScaleGroups groups,
                          const float* inverse_scale, Float8Format format, T* x) {
  const int64_t groups_a_row = groups_in(cols, groups.cols);
  with_format(format, [&](auto constant) NG_INLINE_LAMBDA {
    for (int64_t row = 0; row < rows; ++row) {
      const uint8_t* from = codes + row * cols;
      T* to = x + row * cols;
      const float* scale = inverse_scale + row / groups.rows * groups_a_row;
      if (groups.cols == 1) {
        for (int64_t i = 0; i < cols; ++i) {
          to[i] = from_float<T>(decode<constant.value>(from[i]) * scale[i]);
        }
        continue;
      }
      for_each_piece(cols, groups.cols,
                     [&](int64_t begin, int64_t count, int64_t group) NG_INLINE_LAMBDA {
                       const float factor = scale[group];
                       for (int64_t i = begin; i < begin + count; ++i) {
                         to[i] = from_float<T>(decode<constant.value>(from[i]) * factor);
                       }
                     });
    }
  });
}

template <typename T>
NG_INLINE void count_losses_of(const T* x, const uint8_t* codes, int64_t count, Float8Format format,
                               CastLosses* losses) {
  constexpr int64_t kChunk = 1 << 16;  // so that 32 bits hold the counts
  const uint32_t largest = format == Float8Format::kE4M3
                               ? Float8Layout<Float8Format::kE4M3>::kMaxCode
                               : Float8Layout<Float8Format::kE5M2>::kMaxCode;
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    const int64_t end = std::min(count, begin + kChunk);
    uint32_t saturated = 0;
    uint32_t underflowed = 0;
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t code = codes[i] & 0x7fU;
      saturated += code == largest ? 1 : 0;
      underflowed += code == 0 && magnitude(x[i]) != 0 ? 1 : 0;
    }
    losses->saturated += saturated;
    losses->underflowed += underflowed;
  }
}

// The references know a code by its value alone, and find the nearest one.
double value_of(int code, Float8Format format) {
  const int mantissa_bits = format == Float8Format::kE4M3 ? 3 : 2;
  const int bias = format == Float8Format::kE4M3 ? 7 : 15;
  const int exponent = code >> mantissa_bits;
  const int mantissa = code & ((1 << mantissa_bits) - 1);
  const double fraction = std::ldexp(mantissa, -mantissa_bits);
  return exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
}

uint8_t encode_reference(float x, Float8Format format) {
  const int largest = format == Float8Format::kE4M3 ? 0x7e : 0x7b;
  const int sign = std::signbit(x) ? 0x80 : 0;
  if (std::isnan(x)) {
    return static_cast<uint8_t>(0x7f | sign);
  }
  const double magnitude = std::min<double>(std::fabs(x), value_of(largest, format));
  int below = 0;
  while (below < largest && value_of(below + 1, format) <= magnitude) {
    ++below;
  }
  const int above = std::min(below + 1, largest);
  const double to_below = magnitude - value_of(below, format);
  const double to_above = value_of(above, format) - magnitude;
  const bool up = to_above < to_below || (to_above == to_below && (below & 1) == 1);
  return static_cast<uint8_t>((up ? above : below) | sign);
}

float decode_reference(uint8_t code, Float8Format format) {
  const int magnitude = code & 0x7f;
  const float sign = (code & 0x80) != 0 ? -1.0F : 1.0F;
  if (format == Float8Format::kE4M3 ? magnitude == 0x7f : magnitude > 0x7c) {
    return std::copysign(std::numeric_limits<float>::quiet_NaN(), sign);
  }
  const bool infinite = format == Float8Format::kE5M2 && magnitude == 0x7c;
  return sign * (infinite ? std::numeric_limits<float>::infinity()
                          : static_cast<float>(value_of(magnitude, format)));
}

template <typename Element>
void for_each_element(int64_t rows, int64_t cols, ScaleGroups groups, const Element& element) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; ++col) {
      element(row * cols + col,
              row / groups.rows * groups_in(cols, groups.cols) + col / groups.cols);
    }
  }
}

template <typename T>
void amax_element_by_element(const T* x, int64_t rows, int64_t cols, ScaleGroups groups,
                             float* amax) {
  for_each_element(rows, cols, groups, [&](int64_t i, int64_t group) {
    const float value = std::fabs(to_float(x[i]));
    if (!(value <= amax[group]) && !std::isnan(amax[group])) {
      amax[group] = value;
    }
  });
}

template <typename T>
void cast_element_by_element(const T* x, int64_t rows, int64_t cols, ScaleGroups groups,
                             const float* scale, Float8Format format, uint8_t* codes, float* amax) {
  for_each_element(rows, cols, groups, [&](int64_t i, int64_t group) {
    codes[i] = encode_reference(to_float(x[i]) * scale[group], format);
  });
  if (amax != nullptr) {
    amax_element_by_element(x, rows, cols, groups, amax);
  }
}

template <typename T>
void decode_element_by_element(const uint8_t* codes, int64_t rows, int64_t cols, ScaleGroups groups,
                               const float* inverse_scale, Float8Format format, T* x) {
  for_each_element(rows, cols, groups, [&](int64_t i, int64_t group) {
    x[i] = from_float<T>(decode_reference(codes[i], format) * inverse_scale[group]);
  });
}

}  // namespace

NG_TARGET_CLONES
void amax(const float* x, int64_t rows, int64_t cols, ScaleGroups groups, float* amax) {
  amax_rows(x, rows, cols, groups, amax);
}

NG_TARGET_CLONES
void amax(const uint16_t* x, int64_t rows, int64_t cols, ScaleGroups groups, float* amax) {
  amax_rows(x, rows, cols, groups, amax);
}

NG_TARGET_CLONES
void cast(const float* x, int64_t rows, int64_t cols, ScaleGroups groups, const float* scale,
          Float8Format format, uint8_t* codes, float* amax) {
  cast_any(x, rows, cols, groups, scale, format, codes, amax);
}

NG_TARGET_CLONES
void cast(const uint16_t* x, int64_t rows, int64_t cols, ScaleGroups groups, const float* scale,
          Float8Format format, uint8_t* codes, float* amax) {
  cast_any(x, rows, cols, groups, scale, format, codes, amax);
}

NG_TARGET_CLONES
void decode(const uint8_t* codes, int64_t rows, int64_t cols, ScaleGroups groups,
            const float* inverse_scale, Float8Format format, float* x) {
  decode_any(codes, rows, cols, groups, inverse_scale, format, x);
}

NG_TARGET_CLONES
void decode(const uint8_t* codes, int64_t rows, int64_t cols, ScaleGroups groups,
            const float* inverse_scale, Float8Format format, uint16_t* x) {
  decode_any(codes, rows, cols, groups, inverse_scale, format, x);
}

NG_TARGET_CLONES
void count_losses(const float* x, const uint8_t* codes, int64_t count, Float8Format format,
                  CastLosses* losses) {
  count_losses_of(x, codes, count, format, losses);
}

NG_TARGET_CLONES
void count_losses(const uint16_t* x, const uint8_t* codes, int64_t count, Float8Format format,
                  CastLosses* losses) {
  count_losses_of(x, codes, count, format, losses);
}

void amax_reference(const float* x, int64_t rows, int64_t cols, ScaleGroups groups, float* amax) {
  amax_element_by_element(x, rows, cols, groups, amax);
}

void amax_reference(const uint16_t* x, int64_t rows, int64_t cols, ScaleGroups groups,
                    float* amax) {
  amax_element_by_element(x, rows, cols, groups, amax);
}

void cast_reference(const float* x, int64_t rows, int64_t cols, ScaleGroups groups,
                    const float* scale, Float8Format format, uint8_t* codes, float* amax) {
  cast_element_by_element(x, rows, cols, groups, scale, format, codes, amax);
}

void cast_reference(const uint16_t* x, int64_t rows, int64_t cols, ScaleGroups groups,
                    const float* scale, Float8Format format, uint8_t* codes, float* amax) {
  cast_element_by_element(x, rows, cols, groups, scale, format, codes, amax);
}

void decode_reference(const uint8_t* codes, int64_t rows, int64_t cols, ScaleGroups groups,
                      const float* inverse_scale, Float8Format format, float* x) {
  decode_element_by_element(codes, rows, cols, groups, inverse_scale, format, x);
}

void decode_reference(const uint8_t* codes, int64_t rows, int64_t cols, ScaleGroups groups,
                      const float* inverse_scale, Float8Format format, uint16_t* x) {
  decode_element_by_element(codes, rows, cols, groups, inverse_scale, format, x);
}

}  // namespace narrowgauge::float8::kernels

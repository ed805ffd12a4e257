#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "nn/kernels/attention.h"
#include "nn/kernels/rotate_head.h"
#include "nn/kernels/vector_math.h"

// What forward and backward of attention.h share, for any Engine, which says how operands of
// products lie in memory and multiplies them:
//
//   Element     of a packed operand: float or bf16
//   Word        kPair elements that a step of a product contracts, 32 bits
//   multiply    C [8 rows, 16 kVectors columns] (+)= A B over `steps` words; A at
//               a[row * kARow + step * kAStep], B at b[step * b_step + column]
//   narrow_row, narrow_row_pairs   fp32 rows to the layouts below
//
// Three layouts of a matrix [rows, D], Dp = D rounded up to 16, zero beyond rows and D:
//   rows        [row][element]: an operand A that is contracted over D
//   row pairs   [row / kPair][column] of Words of kPair rows: an operand B, or A transposed, that
//               is contracted over rows
//   panels      [row / 32][element / kPair][row % 32] of Words: an operand B contracted over D
namespace narrowgauge::nn::kernels::attention {

inline constexpr int64_t kTileRows = 8;
inline constexpr int64_t kPanel = 32;

NG_INLINE constexpr int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

// e^x for x <= 0 up to rounding; below 2^-126: 0. NaN stays NaN.
NG_INLINE float exp_nonpositive(float x) {
  constexpr float kMin = -87.33654F;     // ln(smallest normal)
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const float clamped = x < kMin ? kMin : x;
  const float n = (clamped * 1.44269504088896341F + kRound) - kRound;
  const float r = (clamped - n * 0.693359375F) + n * 2.12194440e-4F;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * (r * r) + r + 1.0F;
  const float power = std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
  return x < kMin ? 0.0F : p * power;
}

// Where the pieces of qkv lie, and what else depends on the shape alone.
template <typename Engine>
struct Geometry {
  // Elements from one row to the next of a block in rows: odd multiples of a cache line spread
  // over its sets.
  static constexpr int64_t kRowWords = kMaxAttentionHeadDim / Engine::kPair + 16;
  static constexpr int64_t kRowElements = kRowWords * Engine::kPair;

  explicit Geometry(const AttentionShape& of)
      : shape(of),
        columns(round_up(of.head_dim, 16)),
        words(of.head_dim / Engine::kPair),
        padded_length(round_up(of.length, kPanel)),
        scale(1.0F / std::sqrt(static_cast<float>(of.head_dim))) {}

  int64_t q_offset(int64_t head) const { return head * shape.head_dim; }
  int64_t k_offset(int64_t kv) const { return (shape.num_heads + kv) * shape.head_dim; }
  int64_t v_offset(int64_t kv) const {
    return (shape.num_heads + shape.num_kv_heads + kv) * shape.head_dim;
  }
  // Words of all keys (or values) of a head.
  int64_t panels_size() const { return padded_length * words; }
  int64_t row_pairs_size() const { return padded_length / Engine::kPair * columns; }

  AttentionShape shape;
  int64_t columns;        // Dp
  int64_t words;          // of a row
  int64_t padded_length;  // in whole panels
  float scale;            // of scores
};

// Hands out pieces of scratch memory, each from a cache line of its own on.
class Pieces {
 public:
  NG_INLINE explicit Pieces(float* memory) : next_(memory) {}
  template <typename T>
  NG_INLINE T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(next_);
    next_ += size<T>(count);
    return piece;
  }
  template <typename T>
  NG_INLINE static constexpr int64_t size(int64_t count) {
    return round_up(count * static_cast<int64_t>(sizeof(T)), 64) / 4;
  }

 private:
  float* next_;
};

// ---- Bringing operands into their layouts -----------------------------------------------------

// Rows [0, count) of a head, at `from` and row_stride apart, rotated if cos is given (that of the
// first row's position), to the layout rows; zeros up to padded_count rows.
template <typename Engine, typename T>
NG_INLINE void load_rows(const Geometry<Engine>& geometry, const T* from, int64_t row_stride,
                         const float* cos, const float* sin, int64_t count, int64_t padded_count,
                         typename Engine::Element* rows) {
  using Element = typename Engine::Element;
  const int64_t d = geometry.shape.head_dim;
  for (int64_t row = 0; row < padded_count; ++row) {
    Element* to = rows + row * Geometry<Engine>::kRowElements;
    int64_t written = 0;
    if (row < count) {
      const T* in = from + row * row_stride;
      if (cos != nullptr) {
        rotate_head<T, Element, false>(in, to, cos + row * (d / 2), sin + row * (d / 2), d / 2);
      } else {
        for (int64_t i = 0; i < d; ++i) {
          to[i] = from_float<Element>(to_float(in[i]));
        }
      }
      written = d;
    }
    for (int64_t i = written; i < geometry.columns; ++i) {
      to[i] = 0;
    }
  }
}

// num_rows: a multiple of kPair.
template <typename Engine>
NG_INLINE void pair_rows(const Geometry<Engine>& geometry, const typename Engine::Element* rows,
                         int64_t num_rows, typename Engine::Word* pairs) {
  for (int64_t row = 0; row < num_rows; row += Engine::kPair) {
    Engine::pair_of_rows(rows + row * Geometry<Engine>::kRowElements,
                         Geometry<Engine>::kRowElements, geometry.columns, pairs);
    pairs += geometry.columns;
  }
}

// All keys or values of a head in panels and row pairs; either may be null. rows: scratch, kPanel.
template <typename Engine, typename T>
NG_INLINE void pack_head(const Geometry<Engine>& geometry, const T* from, const float* cos,
                         const float* sin, typename Engine::Element* rows,
                         typename Engine::Word* panels, typename Engine::Word* pairs) {
  const int64_t half = geometry.shape.head_dim / 2;
  const int64_t stride = geometry.shape.qkv_row();
  for (int64_t t = 0; t < geometry.shape.length; t += kPanel) {
    load_rows<Engine>(geometry, from + t * stride, stride, cos == nullptr ? cos : cos + t * half,
                      sin + t * half, std::min(kPanel, geometry.shape.length - t), kPanel, rows);
    if (panels != nullptr) {
      Engine::transpose_panel(rows, Geometry<Engine>::kRowElements, geometry.words,
                              panels + t * geometry.words);
    }
    if (pairs != nullptr) {
      pair_rows<Engine>(geometry, rows, kPanel, pairs + t / Engine::kPair * geometry.columns);
    }
  }
}

// ---- Products ---------------------------------------------------------------------------------

// C [8, num_columns] (+)= A B, num_columns a multiple of 16, both row-major in the sense above.
template <typename Engine, int64_t kARow, int64_t kAStep>
NG_INLINE void multiply(const typename Engine::Word* a, const typename Engine::Word* b,
                        int64_t b_step, int64_t steps, float* c, int64_t c_row, int64_t num_columns,
                        bool add) {
  int64_t column = 0;
  for (; column + 32 <= num_columns; column += 32) {
    Engine::template multiply<kARow, kAStep, 2>(a, b + column, b_step, steps, c + column, c_row,
                                                add);
  }
  if (column < num_columns) {
    Engine::template multiply<kARow, kAStep, 1>(a, b + column, b_step, steps, c + column, c_row,
                                                add);
  }
}

// Scores of 8 rows against `count` panels: [8, 32 count].
template <typename Engine>
NG_INLINE void multiply_panels(const Geometry<Engine>& geometry, const typename Engine::Word* a,
                               const typename Engine::Word* panels, int64_t count, float* c,
                               int64_t c_row) {
  for (int64_t panel = 0; panel < count; ++panel) {
    Engine::template multiply<Geometry<Engine>::kRowWords, 1, 2>(
        a, panels + panel * kPanel * geometry.words, kPanel, geometry.words, c + panel * kPanel,
        c_row, false);
  }
}

}  // namespace narrowgauge::nn::kernels::attention

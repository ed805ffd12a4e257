#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "nn/kernels/attention.h"
#include "nn/kernels/rotate_head.h"
#include "nn/kernels/vector_math.h"

// The algorithm of attention.h for any Engine, which says how operands of products lie in memory
// and multiplies them:
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

// ---- Forward ----------------------------------------------------------------------------------

inline constexpr int64_t kForwardKeys = 128;  // keys of a tile of scores

template <typename Engine>
struct ForwardScratch {
  using Element = typename Engine::Element;
  static constexpr int64_t kWeightElements = kForwardKeys + 16 * Engine::kPair;

  ForwardScratch(const Geometry<Engine>& geometry, float* memory) {
    Pieces pieces(memory);
    q = pieces.take<Element>(kQueryBlock * Geometry<Engine>::kRowElements);
    scores = pieces.take<float>(kTileRows * kForwardKeys);
    weights = pieces.take<Element>(kTileRows * kWeightElements);
    sums = pieces.take<float>(kQueryBlock * geometry.columns);
    largest = pieces.take<float>(kQueryBlock);
    total = pieces.take<float>(kQueryBlock);
  }
  static int64_t size(const Geometry<Engine>& geometry) {
    return Pieces::size<Element>(kQueryBlock * Geometry<Engine>::kRowElements) +
           Pieces::size<float>(kTileRows * kForwardKeys) +
           Pieces::size<Element>(kTileRows * kWeightElements) +
           Pieces::size<float>(kQueryBlock * geometry.columns) +
           2 * Pieces::size<float>(kQueryBlock);
  }

  Element* q;
  float* scores;     // of 8 queries; then their weights
  Element* weights;  // narrowed
  float* sums;       // of weights times values
  float* largest;    // score of a query so far
  float* total;      // of a query's weights so far
};

// One row of a tile: scores [num_columns], of which the first `visible` count, become
// exp(scale (score - largest)), zero behind; largest and total take them in. Returns what earlier
// sums of the row are to be multiplied by.
NG_INLINE float soften_row(float* __restrict scores, int64_t visible, int64_t num_columns,
                           float scale, bool is_first, float* largest, float* total) {
  for (int64_t i = visible; i < num_columns; ++i) {
    scores[i] = -std::numeric_limits<float>::infinity();
  }
  const float seen =
      max_of(num_columns, [=](int64_t i) NG_INLINE_LAMBDA { return scores[i]; }) * scale;
  const float before = *largest;
  const float now = is_first || seen > before ? seen : before;
  for (int64_t i = 0; i < num_columns; ++i) {
    scores[i] = exp_nonpositive(scores[i] * scale - now);
  }
  const float sum = sum_of(num_columns, [=](int64_t i) NG_INLINE_LAMBDA { return scores[i]; });
  const float factor = is_first ? 0.0F : exp_nonpositive(before - now);
  *largest = now;
  *total = is_first ? sum : *total * factor + sum;
  return factor;
}

// Queries [row, row + 8) of the block that begins at query, against keys [begin, begin + 128).
template <typename Engine>
NG_INLINE void attend_tile(const Geometry<Engine>& geometry, const ForwardScratch<Engine>& scratch,
                           const typename Engine::Word* key_panels,
                           const typename Engine::Word* value_pairs, int64_t query, int64_t row,
                           int64_t begin) {
  using Word = typename Engine::Word;
  using Scratch = ForwardScratch<Engine>;
  const int64_t last_key = std::min(query + row + kTileRows, geometry.shape.length) - 1;
  const int64_t num_keys = std::min(last_key + 1 - begin, kForwardKeys);
  const int64_t num_columns = round_up(num_keys, kPanel);
  const auto* q = reinterpret_cast<const Word*>(scratch.q) + row * Geometry<Engine>::kRowWords;
  multiply_panels<Engine>(geometry, q, key_panels + begin * geometry.words, num_columns / kPanel,
                          scratch.scores, kForwardKeys);
  float* sums = scratch.sums + row * geometry.columns;
  for (int64_t i = 0; i < kTileRows; ++i) {
    float* scores = scratch.scores + i * kForwardKeys;
    const int64_t visible = std::min(query + row + i + 1 - begin, num_columns);
    const float factor =
        soften_row(scores, std::max<int64_t>(visible, 0), num_columns, geometry.scale, begin == 0,
                   scratch.largest + row + i, scratch.total + row + i);
    if (begin > 0 && factor != 1.0F) {
      for (int64_t d = 0; d < geometry.columns; ++d) {
        sums[i * geometry.columns + d] *= factor;
      }
    }
    Engine::narrow_row(scores, num_columns, scratch.weights + i * Scratch::kWeightElements);
  }
  multiply<Engine, Scratch::kWeightElements / Engine::kPair, 1>(
      reinterpret_cast<const Word*>(scratch.weights),
      value_pairs + begin / Engine::kPair * geometry.columns, geometry.columns,
      (num_keys + Engine::kPair - 1) / Engine::kPair, sums, geometry.columns, geometry.columns,
      begin > 0);
}

template <typename Engine, typename T>
NG_INLINE void attend_block(const Geometry<Engine>& geometry, const AttentionInput<T>& input,
                            const typename Engine::Word* key_panels,
                            const typename Engine::Word* value_pairs, int64_t batch, int64_t head,
                            int64_t query, T* out, float* log_sum_exp,
                            const ForwardScratch<Engine>& scratch) {
  const AttentionShape& shape = geometry.shape;
  const int64_t rows = std::min(kQueryBlock, shape.length - query);
  const int64_t padded_rows = round_up(rows, kTileRows);
  const int64_t half = shape.head_dim / 2;
  const int64_t first = batch * shape.length + query;
  load_rows<Engine>(geometry, input.qkv + first * shape.qkv_row() + geometry.q_offset(head),
                    shape.qkv_row(), input.cos + query * half, input.sin + query * half, rows,
                    padded_rows, scratch.q);
  for (int64_t begin = 0; begin < query + rows; begin += kForwardKeys) {
    for (int64_t row = 0; row < padded_rows; row += kTileRows) {
      if (query + row + kTileRows > begin) {
        attend_tile<Engine>(geometry, scratch, key_panels, value_pairs, query, row, begin);
      }
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    const float* sums = scratch.sums + row * geometry.columns;
    const float factor = 1.0F / scratch.total[row];
    T* to = out + (first + row) * shape.out_row() + geometry.q_offset(head);
    for (int64_t d = 0; d < shape.head_dim; ++d) {
      to[d] = from_float<T>(sums[d] * factor);
    }
    log_sum_exp[(batch * shape.num_heads + head) * shape.length + query + row] =
        scratch.largest[row] + std::log(scratch.total[row]);
  }
}

template <typename Engine, typename T>
NG_INLINE void pack_keys_values(const AttentionInput<T>& input, float* packed, int64_t begin,
                                int64_t end) {
  using Word = typename Engine::Word;
  const Geometry<Engine> geometry(input.shape);
  alignas(64) typename Engine::Element rows[kPanel * Geometry<Engine>::kRowElements];
  for (int64_t index = begin; index < end; ++index) {
    const int64_t kv = index % input.shape.num_kv_heads;
    const T* from =
        input.qkv + index / input.shape.num_kv_heads * input.shape.length * input.shape.qkv_row();
    auto* keys = reinterpret_cast<Word*>(packed) +
                 index * (geometry.panels_size() + geometry.row_pairs_size());
    pack_head<Engine, T>(geometry, from + geometry.k_offset(kv), input.cos, input.sin, rows, keys,
                         nullptr);
    pack_head<Engine, T>(geometry, from + geometry.v_offset(kv), nullptr, nullptr, rows, nullptr,
                         keys + geometry.panels_size());
  }
}

template <typename Engine, typename T>
NG_INLINE void forward(const AttentionInput<T>& input, const float* packed, T* out,
                       float* log_sum_exp, float* memory, int64_t begin, int64_t end) {
  const Geometry<Engine> geometry(input.shape);
  const ForwardScratch<Engine> scratch(geometry, memory);
  const AttentionShape& shape = input.shape;
  const int64_t num_blocks = shape.num_query_blocks();
  for (int64_t task = begin; task < end; ++task) {
    const int64_t index = task / num_blocks;  // of batch * H
    // Long and short rows in turn.
    const int64_t turn = task % num_blocks;
    const int64_t block = turn % 2 == 0 ? turn / 2 : num_blocks - 1 - turn / 2;
    const int64_t batch = index / shape.num_heads;
    const int64_t head = index % shape.num_heads;
    const int64_t kv = head / (shape.num_heads / shape.num_kv_heads);
    const auto* keys =
        reinterpret_cast<const typename Engine::Word*>(packed) +
        (batch * shape.num_kv_heads + kv) * (geometry.panels_size() + geometry.row_pairs_size());
    attend_block<Engine, T>(geometry, input, keys, keys + geometry.panels_size(), batch, head,
                            block * kQueryBlock, out, log_sum_exp, scratch);
  }
}

// ---- Backward ---------------------------------------------------------------------------------
//
// With S the scores, delta = sum over D of grad_out * out, dP = grad_out v^T, dS = P (dP - delta):
//   grad_v = P^T grad_out, grad_k = dS^T q scale, grad_q = dS k scale, the last two rotated back.

inline constexpr int64_t kBackwardKeys = 64;  // keys of a tile of scores

template <typename Engine>
struct BackwardScratch {
  using Element = typename Engine::Element;
  using Word = typename Engine::Word;
  static constexpr int64_t kPairStep = kBackwardKeys + 16;  // Words
  static constexpr int64_t kGradElements = kBackwardKeys + 16 * Engine::kPair;

  BackwardScratch(const Geometry<Engine>& geometry, float* memory) {
    Pieces pieces(memory);
    carve(geometry, pieces);
  }
  static int64_t size(const Geometry<Engine>& geometry) {
    const int64_t block_rows = Pieces::size<Element>(kQueryBlock * Geometry<Engine>::kRowElements);
    const int64_t block_pairs = Pieces::size<Word>(kQueryBlock / Engine::kPair * geometry.columns);
    return 2 * Pieces::size<Word>(geometry.panels_size()) +
           Pieces::size<Word>(geometry.row_pairs_size()) +
           2 * Pieces::size<float>(geometry.padded_length * geometry.columns) + 2 * block_rows +
           2 * block_pairs + 2 * Pieces::size<float>(kTileRows * kBackwardKeys) +
           2 * Pieces::size<Word>(kQueryBlock / Engine::kPair * kPairStep) +
           Pieces::size<Element>(kQueryBlock * kGradElements) +
           Pieces::size<float>(kQueryBlock * geometry.columns) +
           2 * Pieces::size<float>(kQueryBlock);
  }

  // Of a key/value head:
  Word* key_panels;
  Word* value_panels;
  Word* key_pairs;
  float* grad_keys;    // [padded_length, columns]
  float* grad_values;  // the same
  // Of a block of queries:
  Element* q;
  Element* grad_out;
  Word* q_pairs;
  Word* grad_out_pairs;
  float* grad_q;       // [kQueryBlock, columns]
  float* log_sum_exp;  // [kQueryBlock]
  float* delta;        // [kQueryBlock]
  // Of a tile:
  float* weights;            // [8, kBackwardKeys]
  float* grad_scores;        // the same
  Word* weight_pairs;        // P of the block of queries, row pairs
  Word* grad_score_pairs;    // dS, row pairs
  Element* grad_score_rows;  // dS, rows

 private:
  NG_INLINE void carve(const Geometry<Engine>& geometry, Pieces& pieces) {
    key_panels = pieces.take<Word>(geometry.panels_size());
    value_panels = pieces.take<Word>(geometry.panels_size());
    key_pairs = pieces.take<Word>(geometry.row_pairs_size());
    grad_keys = pieces.take<float>(geometry.padded_length * geometry.columns);
    grad_values = pieces.take<float>(geometry.padded_length * geometry.columns);
    q = pieces.take<Element>(kQueryBlock * Geometry<Engine>::kRowElements);
    grad_out = pieces.take<Element>(kQueryBlock * Geometry<Engine>::kRowElements);
    q_pairs = pieces.take<Word>(kQueryBlock / Engine::kPair * geometry.columns);
    grad_out_pairs = pieces.take<Word>(kQueryBlock / Engine::kPair * geometry.columns);
    weights = pieces.take<float>(kTileRows * kBackwardKeys);
    grad_scores = pieces.take<float>(kTileRows * kBackwardKeys);
    weight_pairs = pieces.take<Word>(kQueryBlock / Engine::kPair * kPairStep);
    grad_score_pairs = pieces.take<Word>(kQueryBlock / Engine::kPair * kPairStep);
    grad_score_rows = pieces.take<Element>(kQueryBlock * kGradElements);
    grad_q = pieces.take<float>(kQueryBlock * geometry.columns);
    log_sum_exp = pieces.take<float>(kQueryBlock);
    delta = pieces.take<float>(kQueryBlock);
  }
};

// P and dS of queries [row, row + 8) of a block and keys [begin, begin + 64), in all layouts.
template <typename Engine>
NG_INLINE void differentiate_tile(const Geometry<Engine>& geometry,
                                  const BackwardScratch<Engine>& scratch, int64_t query,
                                  int64_t row, int64_t begin) {
  using Word = typename Engine::Word;
  using Scratch = BackwardScratch<Engine>;
  const int64_t num_columns = std::min(round_up(query + row + kTileRows - begin, kPanel),
                                       std::min(kBackwardKeys, geometry.padded_length - begin));
  const int64_t first_word = row * Geometry<Engine>::kRowWords;
  multiply_panels<Engine>(geometry, reinterpret_cast<const Word*>(scratch.q) + first_word,
                          scratch.key_panels + begin * geometry.words, num_columns / kPanel,
                          scratch.weights, kBackwardKeys);
  multiply_panels<Engine>(geometry, reinterpret_cast<const Word*>(scratch.grad_out) + first_word,
                          scratch.value_panels + begin * geometry.words, num_columns / kPanel,
                          scratch.grad_scores, kBackwardKeys);
  for (int64_t i = 0; i < kTileRows; ++i) {
    float* __restrict weights = scratch.weights + i * kBackwardKeys;
    float* __restrict grads = scratch.grad_scores + i * kBackwardKeys;
    const float log_sum_exp = scratch.log_sum_exp[row + i];
    const float delta = scratch.delta[row + i];
    for (int64_t c = 0; c < num_columns; ++c) {
      const float weight = exp_nonpositive(weights[c] * geometry.scale - log_sum_exp);
      weights[c] = weight;
      grads[c] = weight * (grads[c] - delta);
    }
    for (int64_t c = query + row + i + 1 - begin; c < num_columns; ++c) {
      weights[c] = 0;
      grads[c] = 0;
    }
    Engine::narrow_row(grads, num_columns,
                       scratch.grad_score_rows + (row + i) * Scratch::kGradElements);
  }
  const int64_t to = row / Engine::kPair * Scratch::kPairStep;
  Engine::narrow_row_pairs(scratch.weights, kBackwardKeys, num_columns, scratch.weight_pairs + to,
                           Scratch::kPairStep);
  Engine::narrow_row_pairs(scratch.grad_scores, kBackwardKeys, num_columns,
                           scratch.grad_score_pairs + to, Scratch::kPairStep);
}

// Adds what queries [query, query + padded_rows) and keys [begin, begin + 64) give each other.
template <typename Engine>
NG_INLINE void accumulate_gradients(const Geometry<Engine>& geometry,
                                    const BackwardScratch<Engine>& scratch, int64_t query,
                                    int64_t padded_rows, int64_t begin) {
  using Word = typename Engine::Word;
  using Scratch = BackwardScratch<Engine>;
  constexpr int64_t kPair = Engine::kPair;
  const int64_t columns = geometry.columns;
  const int64_t num_keys = std::min(kBackwardKeys, geometry.padded_length - begin);
  for (int64_t key = 0; key < num_keys; key += kTileRows) {
    const int64_t first = std::max<int64_t>(begin + key - query, 0);  // query that sees the key
    if (first >= padded_rows) {
      break;
    }
    const int64_t from = first / kPair * Scratch::kPairStep + key;
    const int64_t steps = (padded_rows - first) / kPair;
    const int64_t to = (begin + key) * columns;
    multiply<Engine, 1, Scratch::kPairStep>(
        scratch.weight_pairs + from, scratch.grad_out_pairs + first / kPair * columns, columns,
        steps, scratch.grad_values + to, columns, columns, true);
    multiply<Engine, 1, Scratch::kPairStep>(scratch.grad_score_pairs + from,
                                            scratch.q_pairs + first / kPair * columns, columns,
                                            steps, scratch.grad_keys + to, columns, columns, true);
  }
  for (int64_t row = 0; row < padded_rows; row += kTileRows) {
    const int64_t seen = std::min(query + row + kTileRows - begin, num_keys);
    multiply<Engine, Scratch::kGradElements / kPair, 1>(
        reinterpret_cast<const Word*>(scratch.grad_score_rows + row * Scratch::kGradElements),
        scratch.key_pairs + begin / kPair * columns, columns, (seen + kPair - 1) / kPair,
        scratch.grad_q + row * columns, columns, columns, begin > 0);
  }
}

template <typename Engine, typename T>
NG_INLINE void load_query_block(const Geometry<Engine>& geometry, const AttentionInput<T>& input,
                                const AttentionGradients<T>& gradients, int64_t batch, int64_t head,
                                int64_t query, int64_t rows, int64_t padded_rows,
                                const BackwardScratch<Engine>& scratch) {
  const AttentionShape& shape = geometry.shape;
  const int64_t half = shape.head_dim / 2;
  const int64_t first = batch * shape.length + query;
  load_rows<Engine>(geometry, input.qkv + first * shape.qkv_row() + geometry.q_offset(head),
                    shape.qkv_row(), input.cos + query * half, input.sin + query * half, rows,
                    padded_rows, scratch.q);
  pair_rows<Engine>(geometry, scratch.q, padded_rows, scratch.q_pairs);
  const int64_t from = first * shape.out_row() + geometry.q_offset(head);
  load_rows<Engine, T>(geometry, gradients.grad_out + from, shape.out_row(), nullptr, nullptr, rows,
                       padded_rows, scratch.grad_out);
  pair_rows<Engine>(geometry, scratch.grad_out, padded_rows, scratch.grad_out_pairs);
  const float* log_sum_exp =
      gradients.log_sum_exp + (batch * shape.num_heads + head) * shape.length + query;
  for (int64_t row = 0; row < padded_rows; ++row) {
    // Rows of padding: P is finite and meets zeros alone.
    const int64_t at = from + std::min(row, rows - 1) * shape.out_row();
    const T* out = gradients.out + at;
    const T* grad = gradients.grad_out + at;
    scratch.log_sum_exp[row] = row < rows ? log_sum_exp[row] : 0.0F;
    scratch.delta[row] = row < rows ? sum_of(shape.head_dim,
                                             [=](int64_t i) NG_INLINE_LAMBDA {
                                               return to_float(out[i]) * to_float(grad[i]);
                                             })
                                    : 0.0F;
  }
}

// The gradients of all that the queries of one head reach.
template <typename Engine, typename T>
NG_INLINE void differentiate_head(const Geometry<Engine>& geometry, const AttentionInput<T>& input,
                                  const AttentionGradients<T>& gradients, int64_t batch,
                                  int64_t head, const BackwardScratch<Engine>& scratch) {
  const AttentionShape& shape = geometry.shape;
  const int64_t half = shape.head_dim / 2;
  for (int64_t query = 0; query < shape.length; query += kQueryBlock) {
    const int64_t rows = std::min(kQueryBlock, shape.length - query);
    const int64_t padded_rows = round_up(rows, kTileRows);
    load_query_block<Engine, T>(geometry, input, gradients, batch, head, query, rows, padded_rows,
                                scratch);
    for (int64_t begin = 0; begin < query + rows; begin += kBackwardKeys) {
      for (int64_t row = 0; row < padded_rows; row += kTileRows) {
        differentiate_tile<Engine>(geometry, scratch, query, row, begin);
      }
      accumulate_gradients<Engine>(geometry, scratch, query, padded_rows, begin);
    }
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t t = query + row;
      rotate_head<float, T, true>(scratch.grad_q + row * geometry.columns,
                                  gradients.grad_qkv +
                                      (batch * shape.length + t) * shape.qkv_row() +
                                      geometry.q_offset(head),
                                  input.cos + t * half, input.sin + t * half, half, geometry.scale);
    }
  }
}

template <typename Engine, typename T>
NG_INLINE void write_key_value_gradients(const Geometry<Engine>& geometry,
                                         const AttentionInput<T>& input, T* grad_qkv, int64_t batch,
                                         int64_t kv, const BackwardScratch<Engine>& scratch) {
  const AttentionShape& shape = geometry.shape;
  const int64_t half = shape.head_dim / 2;
  for (int64_t t = 0; t < shape.length; ++t) {
    T* to = grad_qkv + (batch * shape.length + t) * shape.qkv_row();
    rotate_head<float, T, true>(scratch.grad_keys + t * geometry.columns,
                                to + geometry.k_offset(kv), input.cos + t * half,
                                input.sin + t * half, half, geometry.scale);
    const float* from = scratch.grad_values + t * geometry.columns;
    T* grad_v = to + geometry.v_offset(kv);
    for (int64_t d = 0; d < shape.head_dim; ++d) {
      grad_v[d] = from_float<T>(from[d]);
    }
  }
}

template <typename Engine, typename T>
NG_INLINE void backward(const AttentionInput<T>& input, const AttentionGradients<T>& gradients,
                        float* memory, int64_t begin, int64_t end) {
  const Geometry<Engine> geometry(input.shape);
  const BackwardScratch<Engine> scratch(geometry, memory);
  const AttentionShape& shape = input.shape;
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t batch = index / shape.num_kv_heads;
    const int64_t kv = index % shape.num_kv_heads;
    const T* from = input.qkv + batch * shape.length * shape.qkv_row();
    pack_head<Engine, T>(geometry, from + geometry.k_offset(kv), input.cos, input.sin, scratch.q,
                         scratch.key_panels, scratch.key_pairs);
    pack_head<Engine, T>(geometry, from + geometry.v_offset(kv), nullptr, nullptr, scratch.q,
                         scratch.value_panels, nullptr);
    const int64_t size = geometry.padded_length * geometry.columns;
    std::fill_n(scratch.grad_keys, size, 0.0F);
    std::fill_n(scratch.grad_values, size, 0.0F);
    for (int64_t head = kv * group; head < (kv + 1) * group; ++head) {
      differentiate_head<Engine, T>(geometry, input, gradients, batch, head, scratch);
    }
    write_key_value_gradients<Engine, T>(geometry, input, gradients.grad_qkv, batch, kv, scratch);
  }
}

}  // namespace narrowgauge::nn::kernels::attention

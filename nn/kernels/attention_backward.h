#pragma once

#include <algorithm>
#include <cstdint>

#include "nn/kernels/attention_tiles.h"

// Backward of attention.h for any engine: a tile is 8 queries and 64 keys, gathered over a block of
// 64 queries before products contract over it.
//
// With S the scores, delta = sum over D of grad_out * out, dP = grad_out v^T, dS = P (dP - delta):
//   grad_v = P^T grad_out, grad_k = dS^T q scale, grad_q = dS k scale, the last two rotated back.
namespace narrowgauge::nn::kernels::attention {

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

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "nn/kernels/attention_tiles.h"

// Forward of attention.h for any engine: a tile is 8 queries and 128 keys.
namespace narrowgauge::nn::kernels::attention {

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

}  // namespace narrowgauge::nn::kernels::attention

#pragma once

#include <cstdint>

// Masks of 4x4 tiles: at most two elements a row and two a column, so that one mask makes both W
// and W^T 2:4 sparse, and forward, the input's gradient and a later transpose share it.
//
// T is float, or uint16_t for bf16. A mask is bits: [rows, cols / 8] bytes, bit j of byte i of a
// row stands for column 8 i + j, set where the element is kept.
namespace narrowgauge::sparsity::kernels {

enum class TileAlgorithm {
  // Of the 90 patterns with exactly two a row and two a column, one that keeps the largest sum of
  // squares (in fp32: tiles of elements below 1e-22 keep an arbitrary one).
  kOptimal,
  // Elements in descending order of absolute value (the first of a tile's row-major order among
  // equals), each kept while its row and its column have fewer than two. May end at 7 of 8.
  kLargestAbsValuesGreedy,
  // The same by signed value: what torch's _sparse_semi_structured_tile does by default. Keeps
  // far less; here to be compared with.
  kLargestValuesGreedy,
  // As kLargestAbsValuesGreedy, but the tile's rows keep at most 1, 1, 2 and 2: 6 elements.
  kCausal1122,
};

// weight: [rows, cols], row_stride elements from a row to the next. A NaN has the order of its bits
// in the greedy algorithms, and never raises a pattern's sum in kOptimal: the mask stays valid.
// REQUIRES: rows % 4 == 0, cols % 8 == 0.
void tile_mask(const float* weight, int64_t row_stride, int64_t rows, int64_t cols,
               TileAlgorithm algorithm, uint8_t* bits);
void tile_mask(const uint16_t* weight, int64_t row_stride, int64_t rows, int64_t cols,
               TileAlgorithm algorithm, uint8_t* bits);

}  // namespace narrowgauge::sparsity::kernels

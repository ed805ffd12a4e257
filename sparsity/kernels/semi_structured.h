#pragma once

#include <cstdint>

// The packed form of a 2:4 sparse matrix: of each four columns two values, and which two.
//
//   values:   [rows, cols / 2], in the order of columns
//   metadata: [rows, cols / 8] bytes of bits as in tile_mask.h, exactly two set in each half byte
//
// It is 9/16 of the bytes of a dense bf16 matrix. compressed-tensors writes the same bits
// (bitmask); cuSPARSELt writes two column numbers of two bits, which are as many.
// T is uint16_t for bf16, float for fp32. REQUIRES everywhere: cols % 8 == 0.
namespace narrowgauge::sparsity::kernels {

// out = weight where a bit of `mask` is set, else 0. num_elements % 8 == 0.
void apply_mask(const float* weight, const uint8_t* mask, float* out, int64_t num_elements);
void apply_mask(const uint16_t* weight, const uint8_t* mask, uint16_t* out, int64_t num_elements);

// `mask` may keep fewer than two of four: the packed form then holds zeros for the first of those
// it does not keep. Returns false, with arbitrary output, if it keeps more than two anywhere.
bool compress(const float* weight, const uint8_t* mask, float* values, uint8_t* metadata,
              int64_t num_elements);
bool compress(const uint16_t* weight, const uint8_t* mask, uint16_t* values, uint8_t* metadata,
              int64_t num_elements);

// REQUIRES: metadata as compress writes it.
void decompress(const float* values, const uint8_t* metadata, float* out, int64_t num_elements);
void decompress(const uint16_t* values, const uint8_t* metadata, uint16_t* out,
                int64_t num_elements);

}  // namespace narrowgauge::sparsity::kernels

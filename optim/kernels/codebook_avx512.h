#pragma once

#include <cstdint>

#include "optim/kernels/codebook.h"

namespace narrowgauge::optim::kernels {

// codebook.h's functions for processors with AVX-512 and byte permutations (VBMI), 64 values at a
// time. Same bits.

// Whether this processor runs them.
bool has_codebook_avx512();

// Each handles the first values only, in whole 64s, and returns their number. REQUIRES:
// has_codebook_avx512().
int64_t decode_avx512(float* out, const uint8_t* codes, int64_t count, float scale,
                      const CodebookTable& table);
int64_t decode_packed_avx512(float* out, const uint8_t* codes, int64_t count, float scale,
                             const CodebookTable& table);

// 0 for a scale that is not finite or has no reciprocal of full precision. `encode_exactly` is
// called for sixteen values of which one is too close to a boundary.
using EncodePiece = void (*)(uint8_t* codes, const float* x, int64_t count, float scale,
                             const CodebookTable& table);
int64_t encode_avx512(uint8_t* codes, const float* x, int64_t count, float scale,
                      const CodebookTable& table, EncodePiece encode_exactly);
int64_t encode_packed_avx512(uint8_t* codes, const float* x, int64_t count, float scale,
                             const CodebookTable& table, EncodePiece encode_exactly);

}  // namespace narrowgauge::optim::kernels

#pragma once

#include <cstdint>

// Products of a packed 2:4 matrix (see semi_structured.h) with few vectors, which cost what reading
// the matrix does.
namespace narrowgauge::sparsity::kernels {

inline constexpr int64_t kMatvecTokens = 4;  // that one pass over the matrix serves

// Rows [0, rows) of a packed matrix in bf16. REQUIRES: cols % 8 == 0, metadata as compress writes
// it.
struct SemiStructuredRows {
  const uint16_t* values;
  const uint8_t* metadata;
  int64_t rows;
  int64_t cols;
};

// y[t * y_stride + r] = sum over columns of W[r, column] x[t, column] + bias[r], summed in fp32 and
// rounded once. x: [num_tokens, cols] of bf16, bias: bf16 [rows] or null. Where the processor has
// AVX512-BF16 a product with a subnormal number is 0.
void semi_structured_matvec(const SemiStructuredRows& w, const uint16_t* x, int64_t num_tokens,
                            const uint16_t* bias, uint16_t* y, int64_t y_stride);

// The same by one way of computing it, for tests: by plain loops, and with AVX2, which a processor
// without AVX2 and FMA cannot run.
void semi_structured_matvec_portable(const SemiStructuredRows& w, const uint16_t* x,
                                     int64_t num_tokens, const uint16_t* bias, uint16_t* y,
                                     int64_t y_stride);
#if defined(__x86_64__)
void semi_structured_matvec_avx2(const SemiStructuredRows& w, const uint16_t* x, int64_t num_tokens,
                                 const uint16_t* bias, uint16_t* y, int64_t y_stride);
#endif

}  // namespace narrowgauge::sparsity::kernels

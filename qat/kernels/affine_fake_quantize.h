#pragma once

#include <cstdint>

// Quantize and dequantize in one pass, with the bits of quantization/affine.h: in bf16 every
// operation rounds to bf16.
namespace narrowgauge::qat::kernels {

enum class AffineRange { kSymmetric, kNoClipping, kFullRange, kAsymmetric, kFloatZeroPoint };

struct AffineGrid {
  int64_t group = 0;  // columns that share a scale; divides cols
  AffineRange range = AffineRange::kSymmetric;
  float quant_min = 0;
  float quant_max = 0;
  float eps = 0;     // representable in the arithmetic's dtype
  float middle = 0;  // zero point of the symmetric ranges; middle code of the float one
  bool round_qparams_to_bf16 = true;  // of kFloatZeroPoint, whose arithmetic is fp32
};

// Words of a row of `clipped`.
constexpr int64_t clipped_words(int64_t cols) { return (cols + 63) / 64; }

// x, y: [rows, cols]. Sets bit j % 64 of clipped[i, j / 64] where rounding gave a code beyond the
// range, which is where the gradient stops; clipped: [rows, clipped_words(cols)], zeroed by the
// caller, or null. Returns whether there is any. uint16_t is bf16; from fp32 to bf16, x is rounded
// first. y may be x where their types agree. scratch: 5 * cols / group floats.
bool fake_quantize_affine(const uint16_t* x, int64_t rows, int64_t cols, const AffineGrid& grid,
                          uint16_t* y, uint64_t* clipped, float* scratch);
bool fake_quantize_affine(const float* x, int64_t rows, int64_t cols, const AffineGrid& grid,
                          float* y, uint64_t* clipped, float* scratch);
bool fake_quantize_affine(const float* x, int64_t rows, int64_t cols, const AffineGrid& grid,
                          uint16_t* y, uint64_t* clipped, float* scratch);

// grad = 0 where a bit is set.
void zero_clipped(const uint64_t* clipped, int64_t rows, int64_t cols, uint16_t* grad);
void zero_clipped(const uint64_t* clipped, int64_t rows, int64_t cols, float* grad);

}  // namespace narrowgauge::qat::kernels

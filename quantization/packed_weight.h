#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <span>

#include "quantization/kernels/packed_gemv.h"
#include "quantization/quantized_tensor.h"

namespace narrowgauge::quantization {

// The weight of a linear as the CPU reads it, 4 or 8 bits a code and fp32 for each group:
// w = value(code) * scale + offset; see kernels/packed_gemv.h.
struct PackedWeight {
  kernels::CodeFormat format;
  int64_t rows;
  int64_t cols;
  int64_t group_size;  // 16, or a multiple of 32; the padded row where all of it shares a scale
  at::Tensor codes;    // [rows, blocks * bytes of a block] uint8, zero-padded
  at::Tensor scale;    // [rows, groups] fp32
  at::Tensor offset;   // the same; undefined where all are 0

  int64_t size_bytes() const;  // of all three: what one token reads
};

// Packs weights of one number of columns, stacked by rows (q, k and v of a fused projection).
// Codes and, but for the products with a zero point, values are exactly theirs. Nothing where this
// layout has no place for them: groups that are neither 16 nor a multiple of 32, parts of different
// grids or groups. NaN codes make their group NaN.
std::optional<PackedWeight> pack(std::span<const QuantizedTensor> parts);

// x W^T + bias. x: [..., cols] fp32 or bf16 on the CPU; bias [rows] or undefined. Returns [...,
// rows] in x's dtype. Up to kMostGemvTokens rows of x, products with the codes in fp32; beyond,
// rows of W are unpacked by tiles to x's dtype and multiplied by at::linear.
inline constexpr int64_t kMostGemvTokens = 16;
at::Tensor packed_linear(const at::Tensor& x, const PackedWeight& w, const at::Tensor& bias);

// [rows, cols], fp32 or bf16.
at::Tensor unpack(const PackedWeight& w, at::ScalarType dtype);

}  // namespace narrowgauge::quantization

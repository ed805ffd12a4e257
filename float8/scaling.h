#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

// From the values of a matrix to the scales it is cast with. All functions take a matrix
// [rows, cols]; `dim` is the dimension a matrix product contracts (1 or -1: along a row; 0 or -2:
// along a column), since a scale may vary along the other one only, or from block to block.
namespace narrowgauge::float8 {

// Which elements share a scale; the shape of amax and of scales for dim 1 | dim 0.
enum class ScalingGranularity {
  kTensorwise,        // all: []
  kAxiswise,          // a row | a column: [rows, 1] | [1, cols]
  kBlockwise1x128,    // 128 along dim: [rows, ceil(cols / 128)] | [ceil(rows / 128), cols]
  kBlockwise128x128,  // a square: [ceil(rows / 128), ceil(cols / 128)], the same for both
  kBlockwise1x32,     // 32 along dim, with e8m0 scales (MX)
};

enum class ScaleRounding {
  kNone,
  kPowerOf2,   // down to a power of two
  kE8m0Floor,  // MX: exponent of amax less the exponent of the largest fp8 value
  kE8m0Rceil,  // MX: amax / largest fp8 value, up to a power of two
};

// How an operand of a matrix product becomes fp8.
struct CastSpec {
  at::ScalarType dtype = at::kFloat8_e4m3fn;
  ScalingGranularity granularity = ScalingGranularity::kTensorwise;
  ScaleRounding rounding = ScaleRounding::kNone;

  bool operator==(const CastSpec&) const = default;
};

// Throws with a sentence unless dtype is fp8 and e8m0 rounding goes with kBlockwise1x32, and only
// with it.
void check_cast_spec(const CastSpec& spec);

// max |x| of each group, fp32 (exact), of the shape above. x: [rows, cols] bf16, fp16 or fp32. NaN
// if the group holds one, infinity if it holds one and no NaN, 0 if it is empty.
at::Tensor tensor_to_amax(const at::Tensor& x, ScalingGranularity granularity, int64_t dim);

// The multiplier before the cast, fp32: float8_max(dtype) / max(amax, 1e-12) in fp64, rounded to
// fp32, and for kPowerOf2 exp2(floor(log2(scale))), where log2 is fp32 (torchao's amax_to_scale:
// bit-equal). amax of any shape, any floating dtype. amax = 0 gives 448e12 (57344e12), infinity
// gives 0, NaN gives NaN: the cast then writes zeros, NaN for what was infinite, and NaN.
// Throws for e8m0 roundings: see amax_to_e8m0.
at::Tensor amax_to_scale(const at::Tensor& amax, const CastSpec& spec);

// The exponent of an MX block, float8_e8m0fnu: bit-equal to torchao's to_mx. NaN gives NaN (255).
// amax = infinity: kE8m0Floor 2^120 (2^113), so that the block saturates; kE8m0Rceil 2^127.
at::Tensor amax_to_e8m0(const at::Tensor& amax, const CastSpec& spec);

// The multiplier before the cast that goes with an MX exponent: 2^(127 - code), bounded to
// 2^126 (kE8m0Floor) or 1 for code 0 (kE8m0Rceil), both as torchao; 0 or 2^-128 for NaN.
at::Tensor e8m0_to_scale(const at::Tensor& e8m0, const CastSpec& spec);

// Rows and columns of a group; the matrix's own sizes where a group spans it.
struct GroupShape {
  int64_t rows;
  int64_t cols;
};
GroupShape group_shape(ScalingGranularity granularity, int64_t dim, at::IntArrayRef sizes);

// Repeats each entry of `scales` (of tensor_to_amax's shape) over its group: [rows, cols].
at::Tensor expand_scales(const at::Tensor& scales, ScalingGranularity granularity, int64_t dim,
                         at::IntArrayRef sizes);

// tensor_to_amax in ATen operators.
at::Tensor tensor_to_amax_reference(const at::Tensor& x, ScalingGranularity granularity,
                                    int64_t dim);

}  // namespace narrowgauge::float8

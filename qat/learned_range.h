#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <string_view>

#include "quantization/quantized_tensor.h"

// Ranges that train beside the weights they quantize: learned step sizes (LSQ, Esser et al. 2020)
// and, where zero points are values, learned offsets (LSQ+, Bhalgat et al. 2020). With r = (x - b)
// / s for the value b of code 0, smallest and largest code m and M, and the middle code c (0 for
// signed codes),
//
//   x' = s clamp(round(r), m, M) + b
//   dx'/dx = 1 where round(r) is in [m, M], else 0
//   dx'/ds = round(r) - r there, and m - c or M - c where it was clamped
//   dx'/dz = 0 there, 1 where it was clamped                (z: the value of the middle code)
//
// and what s and z get is multiplied by 1 / sqrt(n (M - c)), n being the columns of a group, so
// that it has a weight's size relative to the value itself.
namespace narrowgauge::qat {

// Of a weight [rows, cols]: [rows, groups], floating.
struct LearnedRange {
  at::Tensor scale;
  at::Tensor zero_point;  // the value of the middle code; undefined without zero points
};

// The parameters of a layer that hold them.
inline constexpr std::string_view kScaleName = "weight_scale";
inline constexpr std::string_view kZeroPointName = "weight_zero_point";
// Whether a parameter is one of them, by its full name.
bool is_learned_range(std::string_view parameter);

// Why ranges of this specification can not be learned; empty if they can: evenly spaced codes, by
// row or group, without integer zero points.
std::string learned_range_obstacle(const quantization::QuantizationSpec& spec);

bool has_zero_points(const quantization::QuantizationSpec& spec);

// To begin with, in weight's dtype: that of round-to-nearest, narrowed about its middle by
// whichever of the factors 1, 0.975, ... 0.5 leaves each group the least squared error.
LearnedRange initial_range(const at::Tensor& weight, const quantization::QuantizationSpec& spec);

// The codes, with the range in the dtypes it is stored in; a scale is never below the
// specification's eps. weight: a matrix. No gradient.
quantization::QuantizedTensor quantize(const at::Tensor& weight, const LearnedRange& range,
                                       const quantization::QuantizationSpec& spec);

// The values of those codes, in weight's dtype.
at::Tensor fake_quantized_values(const at::Tensor& weight, const LearnedRange& range,
                                 const quantization::QuantizationSpec& spec);

// The gradients above, in the dtypes of weight and range. grad: of the values, weight's sizes.
struct LearnedRangeGradients {
  at::Tensor weight;
  LearnedRange range;
};
LearnedRangeGradients learned_range_gradients(const at::Tensor& grad, const at::Tensor& weight,
                                              const LearnedRange& range,
                                              const quantization::QuantizationSpec& spec);

}  // namespace narrowgauge::qat

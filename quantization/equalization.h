#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "quantization/input_statistics.h"
#include "quantization/quantized_tensor.h"
#include "quantization/scheme.h"

// Factors s of a linear's input channels: x / s goes in, W s (by columns) is quantized, and what
// computes x (a norm, or the rows of another linear) takes the division, so that nothing but
// rounding changes.
namespace narrowgauge::quantization {

// Activation-aware weight quantization (AWQ; Lin et al. 2023): s = mean |x| ^ alpha, normalised by
// sqrt(max s * min s), alpha the one of 0, 1/20, ... 19/20 whose rounded weight moves the outputs
// least on the calibration inputs. mean_abs: [cols], what stands for the channels' sizes (those of
// inputs that share a factor made equal).
struct AwqScale {
  at::Tensor factor;  // [cols] fp32
  double alpha = 0;
  double error = 0;          // mean |x E^T|^2 with it
  double nearest_error = 0;  // without: alpha 0
};
AwqScale awq_scale(const at::Tensor& weight, const InputStatistics& inputs,
                   const at::Tensor& mean_abs, const QuantizationSpec& spec);

// AWQ's clipping: of each group, the largest value is cut to the share (1, 0.95, ... 0.5) whose
// rounded weights move that group's part of the outputs least. Affine grids, per row or group.
QuantizedTensor quantize_clipped(const at::Tensor& weight, const InputStatistics& inputs,
                                 const QuantizationSpec& spec);

// SmoothQuant (Xiao et al. 2022): s = max |x| ^ alpha / max |W| ^ (1 - alpha), by columns. max_abs:
// [cols].
at::Tensor smooth_quant_scale(const at::Tensor& weight, const at::Tensor& max_abs, double alpha);

}  // namespace narrowgauge::quantization

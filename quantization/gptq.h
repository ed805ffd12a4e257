#pragma once

#include <ATen/core/Tensor.h>

#include "quantization/quantized_tensor.h"

// GPTQ (Frantar, Ashkboos, Hoefler, Alistarh 2022): columns are rounded one after another, and the
// columns still to come make up for each one's error on the calibration inputs.
namespace narrowgauge::quantization {

struct GptqOptions {
  double damping = 0.01;   // of the mean diagonal, added to the Hessian's
  bool act_order = false;  // columns of large inputs first; groups keep their own scales
};

// What GPTQ needs of the inputs, made once for all weights that read them.
struct GptqFactor {
  at::Tensor upper;  // [cols, cols] fp32, U with U^T U = (H + damping)^-1, in the order of `order`
  at::Tensor order;  // [cols] int64: the column that is rounded at each place
};

// hessian: [cols, cols], mean of x^T x. Channels that were always 0 count as independent of the
// rest. Damping grows tenfold, three times at most, until the factorisation succeeds; then throws
// c10::Error.
GptqFactor factorize(const at::Tensor& hessian, const GptqOptions& options);

// weight: [rows, cols] floating. spec: an affine grid, per row or per group. A group's scale is
// chosen, as `quantize` chooses it, when its first column is reached, from columns that already
// make up for earlier errors; with act_order, from the weight as it is.
QuantizedTensor gptq(const at::Tensor& weight, const GptqFactor& factor,
                     const QuantizationSpec& spec, const GptqOptions& options);

}  // namespace narrowgauge::quantization

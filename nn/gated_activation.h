#pragma once

#include <ATen/core/Tensor.h>

#include "nn/layer.h"

namespace narrowgauge::nn {

// SwiGLU (nn/swiglu.h) as a layer without parameters, so that hooks reach its output.
class GatedActivation : public Layer {
 public:
  // gate_up: [..., 2 * ffn], gate first -> [..., ffn].
  at::Tensor operator()(const at::Tensor& gate_up);
};

}  // namespace narrowgauge::nn

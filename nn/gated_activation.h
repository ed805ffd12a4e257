#pragma once

#include <ATen/core/Tensor.h>

#include "nn/layer.h"

namespace narrowgauge::nn {

// SwiGLU (nn/swiglu.h) as a layer without parameters, so that hooks reach its output.
class GatedActivation : public Layer {
 public:
  // gate_up: [..., 2 * ffn], gate first -> [..., ffn].
  at::Tensor operator()(const at::Tensor& gate_up);

  // Whether it hands on the largest magnitudes of what it writes (nn/swiglu.h), for casts whose
  // scales follow them.
  void set_with_amax(bool with_amax) { with_amax_ = with_amax; }

 private:
  bool with_amax_ = false;
};

}  // namespace narrowgauge::nn

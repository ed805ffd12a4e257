#include "nn/gated_activation.h"

#include "nn/swiglu.h"

namespace narrowgauge::nn {

at::Tensor GatedActivation::operator()(const at::Tensor& gate_up) {
  return hooked(gate_up, [with_amax = with_amax_](const at::Tensor& input) {
    return swiglu(input, with_amax);
  });
}

}  // namespace narrowgauge::nn

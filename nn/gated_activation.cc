#include "nn/gated_activation.h"

#include "nn/swiglu.h"

namespace narrowgauge::nn {

at::Tensor GatedActivation::operator()(const at::Tensor& gate_up) {
  return hooked(gate_up, [](const at::Tensor& input) { return swiglu(input); });
}

}  // namespace narrowgauge::nn

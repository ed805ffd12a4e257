#include "nn/swiglu.h"

#include <ATen/ops/silu.h>
#include <c10/util/Exception.h>

namespace narrowgauge::nn {

at::Tensor swiglu_reference(const at::Tensor& gate_up) {
  const auto compute = gate_up.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto halves = gate_up.to(compute).chunk(2, -1);
  return at::silu(halves[0]).mul(halves[1]).to(gate_up.scalar_type());
}

at::Tensor swiglu(const at::Tensor& gate_up) { return swiglu_reference(gate_up); }

}  // namespace narrowgauge::nn

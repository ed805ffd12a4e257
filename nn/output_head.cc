#include "nn/output_head.h"

namespace narrowgauge::nn {

at::Tensor OutputHead::loss(
    const at::Tensor& x,
    const std::function<at::Tensor(const at::Tensor& x, const at::Tensor& weight)>& loss) {
  return hooked(x, [this, loss](const at::Tensor& input) { return loss(input, weight); });
}

}  // namespace narrowgauge::nn

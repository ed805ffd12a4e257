#include "nn/output_head.h"

#include "nn/linear_cross_entropy.h"

namespace narrowgauge::nn {

at::Tensor OutputHead::cross_entropy_sum(const at::Tensor& x, const at::Tensor& targets,
                                         double scale, int64_t ignore_index) {
  return hooked(x, [this, targets, scale, ignore_index](const at::Tensor& input) {
    return linear_cross_entropy_sum(input, weight, targets, scale, ignore_index);
  });
}

}  // namespace narrowgauge::nn

#include "nn/norm.h"

#include <ATen/ops/empty.h>

#include "nn/rms_norm.h"

namespace narrowgauge::nn {

RMSNorm::RMSNorm(int64_t dim, double eps, const at::TensorOptions& options) : eps(eps) {
  add_parameter("weight", weight, at::empty({dim}, options));
}

at::Tensor RMSNorm::operator()(const at::Tensor& x) {
  return hooked(x, [this](const at::Tensor& input) { return rms_norm(input, weight, eps); });
}

std::pair<at::Tensor, at::Tensor> RMSNorm::operator()(const at::Tensor& residual,
                                                      const at::Tensor& x) {
  at::Tensor sum;
  at::Tensor output = hooked(x, [&](const at::Tensor& input) {
    auto [h, normed] = add_rms_norm(residual, input, weight, eps);
    sum = std::move(h);
    if (sum_hook_) {
      sum_hook_(sum);
    }
    return normed;
  });
  return {std::move(sum), std::move(output)};
}

}  // namespace narrowgauge::nn

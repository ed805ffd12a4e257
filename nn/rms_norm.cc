#include "nn/rms_norm.h"

#include <ATen/ops/mean.h>
#include <ATen/ops/rsqrt.h>
#include <c10/util/Exception.h>

namespace narrowgauge::nn {

at::Tensor rms_norm_reference(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const auto compute = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor wide = x.to(compute);
  const at::Tensor rstd = at::rsqrt(wide.square().mean(-1, /*keepdim=*/true).add(eps));
  return wide.mul(rstd).mul(weight.to(compute)).to(x.scalar_type());
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return rms_norm_reference(x, weight, eps);
}

std::pair<at::Tensor, at::Tensor> add_rms_norm(const at::Tensor& residual, const at::Tensor& x,
                                               const at::Tensor& weight, double eps) {
  const at::Tensor h = residual.add(x);
  return {h, rms_norm(h, weight, eps)};
}

}  // namespace narrowgauge::nn

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

}  // namespace narrowgauge::nn

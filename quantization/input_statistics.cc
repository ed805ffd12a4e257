#include "quantization/input_statistics.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>

namespace narrowgauge::quantization {

InputStatistics::InputStatistics(int64_t cols)
    : products_(at::zeros({cols, cols}, at::kDouble)),
      abs_sum_(at::zeros({cols}, at::kDouble)),
      max_abs_(at::zeros({cols})),
      sample_(at::zeros({0, cols})) {}

void InputStatistics::add(const at::Tensor& x) {
  const at::Tensor rows = x.detach().reshape({-1, products_.size(0)}).to(at::kFloat);
  if (rows.size(0) == 0) {
    return;
  }
  num_rows_ += rows.size(0);
  products_.add_(rows.t().matmul(rows));
  const at::Tensor sizes = rows.abs();
  abs_sum_.add_(sizes.sum(0));
  max_abs_ = at::maximum(max_abs_, sizes.amax(0));
  if (sample_.size(0) < kMostSamples) {
    const int64_t count = std::min(kMostSamples - sample_.size(0), rows.size(0));
    sample_ = at::cat({sample_, rows.narrow(0, 0, count)});
  }
}

void InputStatistics::divide(const at::Tensor& factor) {
  const at::Tensor wide = factor.to(at::kDouble);
  products_.div_(wide.unsqueeze(0)).div_(wide.unsqueeze(1));
  abs_sum_.div_(wide);
  max_abs_ = max_abs_.div(factor);
  sample_ = sample_.div(factor);
}

at::Tensor InputStatistics::hessian() const {
  TORCH_CHECK(num_rows_ > 0, "expected calibration inputs, got none");
  return products_.div(static_cast<double>(num_rows_)).to(at::kFloat);
}

at::Tensor InputStatistics::mean_abs() const {
  TORCH_CHECK(num_rows_ > 0, "expected calibration inputs, got none");
  return abs_sum_.div(static_cast<double>(num_rows_)).to(at::kFloat);
}

double InputStatistics::output_error(const at::Tensor& change) const {
  const at::Tensor e = change.to(at::kFloat);
  return e.matmul(hessian()).mul(e).sum(at::kDouble).item<double>();
}

}  // namespace narrowgauge::quantization

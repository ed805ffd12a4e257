#include "float8/amax_history.h"

#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>

namespace narrowgauge::float8 {

AmaxHistory::AmaxHistory(int64_t length, AmaxComputeAlgo algo, const CastSpec& spec)
    : algo_(algo), spec_(spec) {
  TORCH_CHECK(length >= 1, "expected amax_history_len >= 1, got ", length);
  values_ = at::zeros({length}, at::kFloat);
}

void AmaxHistory::push(float amax) {
  TORCH_CHECK(std::isfinite(amax), "expected a finite amax, got ", amax);
  if (amax == 0.0F) {
    return;
  }
  auto* values = values_.mutable_data_ptr<float>();
  std::copy_backward(values, values + values_.numel() - 1, values + values_.numel());
  values[0] = amax;
  compute_scale();
}

void AmaxHistory::compute_scale() {
  const auto* values = values_.const_data_ptr<float>();
  const float amax = algo_ == AmaxComputeAlgo::kMostRecent
                         ? values[0]
                         : *std::max_element(values, values + values_.numel());
  TORCH_CHECK(std::isfinite(amax) && amax >= 0.0F, "expected finite amaxes in a history, got ",
              amax, "; the checkpoint is damaged or of another kind");
  scale_ = amax == 0.0F ? at::Tensor() : amax_to_scale(at::full({}, amax, at::kFloat), spec_);
}

}  // namespace narrowgauge::float8

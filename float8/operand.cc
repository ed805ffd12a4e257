#include "float8/operand.h"

#include <ATen/ops/maximum.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <utility>

#include "float8/cast.h"

namespace narrowgauge::float8 {
namespace {

bool is_delayed_cast(const CastConfig& cast) { return cast.scaling_type == ScalingType::kDelayed; }

bool is_enabled(const CastConfig& cast) { return cast.scaling_type != ScalingType::kDisabled; }

bool same_groups_for_both_dims(ScalingGranularity granularity) {
  return granularity == ScalingGranularity::kTensorwise ||
         granularity == ScalingGranularity::kBlockwise128x128;
}

}  // namespace

Operand::Operand(const CastConfig& dim1, const CastConfig& dim0, int64_t amax_history_len,
                 AmaxComputeAlgo algo)
    : dim1_(dim1), dim0_(dim0) {
  if (is_delayed_cast(dim1) || is_delayed_cast(dim0)) {
    history_.emplace(amax_history_len, algo, is_delayed_cast(dim1) ? dim1.spec : dim0.spec);
  }
}

bool Operand::has_one_cast() const {
  return dim1_ == dim0_ && same_groups_for_both_dims(dim1_.spec.granularity);
}

OperandCasts Operand::cast(const at::Tensor& x, bool want_dim1, bool want_dim0, bool training) {
  RECORD_FUNCTION("narrowgauge::float8::cast", c10::ArrayRef<const c10::IValue>());
  want_dim1 = want_dim1 && is_enabled(dim1_);
  want_dim0 = want_dim0 && is_enabled(dim0_);
  OperandCasts casts;
  if (want_dim1 && want_dim0 && !is_delayed()) {
    BothDims both = hp_tensor_to_float8_both_dims(x, dim1_.spec, dim0_.spec);
    casts = {std::move(both.dim1), std::move(both.dim0)};
    if (training) {
      sample(x, casts.dim1);
    }
  } else if (want_dim1 && want_dim0 && has_one_cast()) {
    casts = cast_both_delayed(x, training);
  } else {
    casts.dim1 = want_dim1 ? cast_one(x, dim1_, 1, training) : casts.dim1;
    casts.dim0 = want_dim0 ? cast_one(x, dim0_, 0, training) : casts.dim0;
  }
  return casts;
}

at::Tensor Operand::delayed_scale(const at::Tensor& x, const CastConfig& config,
                                  int64_t dim) const {
  return history_->scale().defined()
             ? history_->scale().to(x.device())
             : amax_to_scale(tensor_to_amax(x, config.spec.granularity, dim), config.spec);
}

OperandCasts Operand::cast_both_delayed(const at::Tensor& x, bool training) {
  BothDimsWithAmax both =
      hp_tensor_and_scale_to_float8_both_dims(x, delayed_scale(x, dim1_, 1), dim1_.spec);
  if (training) {
    record_amax(both.amax);
    sample(x, both.dim1);
  }
  return {std::move(both.dim1), std::move(both.dim0)};
}

Float8TrainingTensor Operand::cast_one(const at::Tensor& x, const CastConfig& config, int64_t dim,
                                       bool training) {
  if (is_delayed_cast(config)) {
    return cast_with_scale(x, delayed_scale(x, config, dim), config, dim, training);
  }
  Float8TrainingTensor cast = hp_tensor_to_float8_dynamic(x, config.spec, dim);
  if (training) {
    sample(x, cast);
  }
  return cast;
}

Float8TrainingTensor Operand::cast_with_scale(const at::Tensor& x, const at::Tensor& scale,
                                              const CastConfig& config, int64_t dim,
                                              bool training) {
  const at::Tensor on_device = scale.to(x.device());
  if (!training || !is_delayed_cast(config)) {
    Float8TrainingTensor cast = hp_tensor_and_scale_to_float8(x, on_device, config.spec, dim);
    if (training) {
      sample(x, cast);
    }
    return cast;
  }
  CastWithAmax result = hp_tensor_and_scale_to_float8_with_amax(x, on_device, config.spec, dim);
  record_amax(result.amax);
  sample(x, result.tensor);
  return std::move(result.tensor);
}

void Operand::record_amax(const at::Tensor& amax) {
  amax_ = amax_.defined() ? at::maximum(amax_, amax) : amax;  // maximum keeps NaN
}

at::Tensor Operand::take_amax() { return std::exchange(amax_, at::Tensor()); }

void Operand::sample(const at::Tensor& x, const Float8TrainingTensor& cast) {
  if (!sampling_ || x.numel() == 0) {
    return;
  }
  const CastStatistics statistics = cast_statistics(x, cast);
  const auto count = static_cast<double>(x.numel());
  health_.num_elements += count;
  health_.num_saturated += statistics.saturated_fraction * count;
  health_.num_underflowed += statistics.underflowed_fraction * count;
  const at::Tensor inverse = cast.inverse_scale.to(at::kFloat);
  health_.scale_min = std::min(health_.scale_min, 1.0 / inverse.max().item<double>());
  health_.scale_max = std::max(health_.scale_max, 1.0 / inverse.min().item<double>());
}

OperandHealth Operand::take_health() { return std::exchange(health_, OperandHealth()); }

}  // namespace narrowgauge::float8

#include "float8/weight_gather.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/reciprocal.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/graph_task.h>

#include "float8/cast.h"

namespace narrowgauge::float8 {
namespace {

bool inside_backward() { return torch::autograd::get_current_graph_task_id() != -1; }

bool is_by_row(const CastConfig& config) {
  return config.spec.granularity == ScalingGranularity::kAxiswise;
}

// [shards, padded rows, ...] -> [rows, ...] without the padding behind the last shard's rows.
at::Tensor without_padding(const at::Tensor& gathered, int64_t rows) {
  return gathered.flatten(0, 1).narrow(0, 0, rows);
}

}  // namespace

WeightGather::WeightGather(Operand& weight, int64_t rows, at::ScalarType param_dtype,
                           bool float8_on_wire, const WeightLifetime& lifetime)
    : weight_(weight),
      rows_(rows),
      param_dtype_(param_dtype),
      float8_on_wire_(float8_on_wire),
      lifetime_(lifetime) {}

std::vector<at::Tensor> WeightGather::pack(const at::Tensor& padded_shard) {
  const bool stays = lifetime_.num_shards == 1;
  brings_dim1_ = stays || !inside_backward() || lifetime_.recomputed;
  brings_dim0_ = stays || inside_backward() || lifetime_.kept_after_forward;
  if (!float8_on_wire_) {
    return {padded_shard.to(param_dtype_)};
  }
  if (stays) {
    shard_casts_ = {};  // called again: the weight has changed
  } else {
    check_agreed(padded_shard);
  }
  if (weight_.has_one_cast()) {
    return {shard_cast(padded_shard, 1).data};
  }
  std::vector<at::Tensor> inputs;
  if (brings_dim1_) {
    const Float8TrainingTensor& cast = shard_cast(padded_shard, 1);
    inputs.push_back(cast.data);
    if (is_by_row(weight_.dim1())) {
      inputs.push_back(cast.inverse_scale);
    }
  }
  if (brings_dim0_) {
    inputs.push_back(shard_cast(padded_shard, 0).data);
  }
  return inputs;
}

void WeightGather::check_agreed(const at::Tensor& padded_shard) const {
  // An offloaded shard comes as a copy, whose version says nothing.
  const bool changed_since = padded_shard.const_data_ptr() == shard_data_ &&
                             static_cast<int64_t>(padded_shard._version()) != shard_version_;
  TORCH_CHECK(agreed_ && !changed_since,
              "expected scales that all ranks have agreed on since the weight changed last, got "
              "none; call Float8Training::refresh after materialize and after loading, and "
              "after_optimizer_step after every optimizer step");
}

void WeightGather::unpack(const std::vector<at::Tensor>& outputs) {
  if (!float8_on_wire_) {
    const at::Tensor weight = without_padding(outputs.at(0), rows_);
    gathered_ = weight_.cast(weight, brings_dim1_, brings_dim0_, /*training=*/true);
    return;
  }
  gathered_ = {};
  size_t next = 0;
  if (weight_.has_one_cast()) {
    gathered_.dim1 = assemble(outputs, next, weight_.dim1(), 1);
    if (brings_dim0_) {
      gathered_.dim0 = readable_over_dim0(gathered_.dim1);
    }
    return;
  }
  if (brings_dim1_) {
    gathered_.dim1 = assemble(outputs, next, weight_.dim1(), 1);
  }
  if (brings_dim0_) {
    gathered_.dim0 = assemble(outputs, next, weight_.dim0(), 0);
  }
}

Float8TrainingTensor WeightGather::assemble(const std::vector<at::Tensor>& outputs, size_t& next,
                                            const CastConfig& config, int64_t dim) const {
  const Float8TrainingTensor& shard = dim == 1 ? shard_casts_.dim1 : shard_casts_.dim0;
  Float8TrainingTensor whole = shard;
  whole.data = without_padding(outputs.at(next++), rows_);
  if (dim == 1 && is_by_row(config)) {
    whole.inverse_scale = without_padding(outputs.at(next++), rows_);
  }
  return whole;
}

const Float8TrainingTensor& WeightGather::dim1() const {
  TORCH_CHECK(gathered_.dim1.data.defined(),
              "expected the weight for output gathered, got none; a forward that backward runs "
              "again needs WeightLifetime::recomputed");
  return gathered_.dim1;
}

const Float8TrainingTensor& WeightGather::dim0() const {
  TORCH_CHECK(gathered_.dim0.data.defined(),
              "expected the weight for grad_input gathered, got none; parameters that are not "
              "resharded after forward need WeightLifetime::kept_after_forward");
  return gathered_.dim0;
}

bool WeightGather::needs_agreement(const CastConfig& config, int64_t dim) const {
  if (config.scaling_type == ScalingType::kDelayed) {
    return !weight_.history().scale().defined();
  }
  // A row belongs to one rank; a column and the whole tensor to all.
  return !(is_by_row(config) && dim == 1);
}

at::Tensor WeightGather::begin_agreement(const at::Tensor& shard) {
  shard_casts_ = {};
  scale_dim1_ = scale_dim0_ = at::Tensor();
  agreed_ = true;
  shard_data_ = shard.const_data_ptr();
  shard_version_ = static_cast<int64_t>(shard._version());
  std::vector<at::Tensor> parts;
  if (float8_on_wire_ && lifetime_.num_shards > 1) {
    if (needs_agreement(weight_.dim1(), 1)) {
      parts.push_back(tensor_to_amax(shard, weight_.dim1().spec.granularity, 1).reshape({-1}));
    }
    if (!weight_.has_one_cast() && needs_agreement(weight_.dim0(), 0)) {
      parts.push_back(tensor_to_amax(shard, weight_.dim0().spec.granularity, 0).reshape({-1}));
    }
  }
  return parts.empty() ? at::empty({0}, shard.options().dtype(at::kFloat)) : at::cat(parts);
}

void WeightGather::end_agreement(const at::Tensor& amaxes) {
  if (amaxes.numel() == 0) {
    return;
  }
  int64_t next = 0;
  if (needs_agreement(weight_.dim1(), 1)) {  // the whole tensor
    scale_dim1_ = amax_to_scale(amaxes.select(0, next++), weight_.dim1().spec);
  }
  if (!weight_.has_one_cast() && needs_agreement(weight_.dim0(), 0)) {
    const at::Tensor rest = amaxes.narrow(0, next, amaxes.numel() - next);
    const at::Tensor amax = is_by_row(weight_.dim0()) ? rest.unsqueeze(0) : rest.select(0, 0);
    scale_dim0_ = amax_to_scale(amax, weight_.dim0().spec);
  }
}

const Float8TrainingTensor& WeightGather::shard_cast(const at::Tensor& padded_shard, int64_t dim) {
  Float8TrainingTensor& cast = dim == 1 ? shard_casts_.dim1 : shard_casts_.dim0;
  if (!cast.data.defined()) {
    const CastConfig& config = dim == 1 ? weight_.dim1() : weight_.dim0();
    const at::Tensor scale = scale_for(padded_shard, config, dim);
    cast = weight_.cast_with_scale(padded_shard, scale, config, dim, /*training=*/true);
    cast.orig_dtype = param_dtype_;
  }
  return cast;
}

at::Tensor WeightGather::scale_for(const at::Tensor& padded_shard, const CastConfig& config,
                                   int64_t dim) const {
  if (config.scaling_type == ScalingType::kDelayed && weight_.history().scale().defined()) {
    return weight_.history().scale();
  }
  const at::Tensor& agreed = dim == 1 ? scale_dim1_ : scale_dim0_;
  if (agreed.defined()) {
    return agreed;
  }
  const at::Tensor amax = tensor_to_amax(padded_shard, config.spec.granularity, dim);
  return amax_to_scale(amax, config.spec);
}

}  // namespace narrowgauge::float8

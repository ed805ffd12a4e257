#include "fsdp/fsdp_param_group.h"

#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

namespace narrowgauge::fsdp {

FSDPParamGroup::FSDPParamGroup(std::vector<std::unique_ptr<FSDPParam>> params,
                               const comm::DeviceMesh& mesh, const FullyShardOptions& options)
    : params_(std::move(params)),
      reduce_dtype_(options.mp_policy.reduce_dtype),
      offload_policy_(options.offload_policy),
      gradient_divide_factor_(options.gradient_divide_factor) {
  TORCH_CHECK(gradient_divide_factor_ > 0.0, "expected gradient_divide_factor > 0, got ",
              gradient_divide_factor_);
  // Pieces of work on a stream keep the mesh, and so its communicators, alive.
  const auto kept = std::make_shared<comm::DeviceMesh>(mesh);
  shard_axis_ = std::shared_ptr<comm::Communicator>(kept, &kept->shard_axis());
  replicate_axis_ = std::shared_ptr<comm::Communicator>(kept, &kept->replicate_axis());
  for (const auto& param : params_) {
    if (!param->requires_grad()) {
      continue;
    }
    const at::ScalarType dtype = reduce_dtype_of(*param);
    auto reduction = std::find_if(reductions_.begin(), reductions_.end(),
                                  [&](const Reduction& other) { return other.dtype == dtype; });
    if (reduction == reductions_.end()) {
      reduction = reductions_.emplace(reductions_.end());
      reduction->dtype = dtype;
    }
    reduction->params.push_back(param.get());
  }
}

FSDPParamGroup::~FSDPParamGroup() {
  try {
    drop_unshard();
    wait_for_reductions();
  } catch (...) {
    // A collective failed; whoever waited for another one has been told.
  }
}

bool FSDPParamGroup::has_collectives() const {
  return !params_.empty() && (shard_axis_->size() > 1 || replicate_axis_->size() > 1);
}

void FSDPParamGroup::unshard(TrainingState state) {
  RECORD_FUNCTION("narrowgauge::fsdp::unshard", c10::ArrayRef<const c10::IValue>());
  if (params_.empty() || (state == TrainingState::kPreBackward && !unshard_in_backward_)) {
    return;
  }
  check_materialized();
  const c10::NoGradGuard no_grad;
  if (!is_sharded_mesh()) {
    for (const auto& param : params_) {
      param->refresh_if_changed();
    }
    return;
  }
  if (is_stale()) {  // gathered before the optimizer's step
    drop_unshard();
    reshard();
  }
  if (all_gather_ || sharded_state_ == ShardedState::kUnsharded) {
    return;
  }
  record(TrainingEvent::Kind::kUnshard, state);
  if (std::any_of(params_.begin(), params_.end(), [](const auto& param) {
        return param->extension() != nullptr && param->extension()->communicates();
      })) {
    context_->streams.drain();
  }
  std::vector<AllGatherInput> inputs;
  num_inputs_.clear();
  for (const auto& param : params_) {
    const size_t before = inputs.size();
    param->append_all_gather_inputs(inputs);
    num_inputs_.push_back(inputs.size() - before);
  }
  const auto& axis =
      sharded_state_ == ShardedState::kShardedPostForward ? post_forward_axis_ : shard_axis_;
  all_gather_ =
      foreach_all_gather(std::move(inputs), params_[0]->device(), axis, context_->streams);
}

void FSDPParamGroup::wait_for_unshard() {
  if (!all_gather_) {
    return;
  }
  const c10::NoGradGuard no_grad;
  const AllGatherResult result = std::move(*all_gather_);
  all_gather_.reset();
  result.work->wait();
  // Set first: should memory run out below, reshard must free what there is.
  sharded_state_ = ShardedState::kUnsharded;
  std::vector<at::Tensor> outputs;
  std::vector<std::vector<at::Tensor>> outputs_of_param;
  for (size_t i = 0; i < params_.size(); ++i) {
    outputs_of_param.push_back(params_[i]->all_gather_outputs(
        result.inputs.data() + outputs.size(), num_inputs_[i], result.gathered.size(0)));
    outputs.insert(outputs.end(), outputs_of_param.back().begin(), outputs_of_param.back().end());
  }
  foreach_all_gather_copy_out(result, outputs);
  for (size_t i = 0; i < params_.size(); ++i) {
    params_[i]->finish_unshard(std::move(outputs_of_param[i]));
  }
}

void FSDPParamGroup::reshard() {
  if (sharded_state_ == ShardedState::kSharded) {
    return;
  }
  for (const auto& param : params_) {
    param->reshard();
  }
  sharded_state_ = ShardedState::kSharded;
  record(TrainingEvent::Kind::kReshard, training_state_);
}

void FSDPParamGroup::reshard_post_forward(const std::shared_ptr<comm::Communicator>& neighbours) {
  if (sharded_state_ != ShardedState::kUnsharded) {
    return;
  }
  for (const auto& param : params_) {
    param->reshard_post_forward(neighbours->rank(), neighbours->size());
  }
  post_forward_axis_ = neighbours;
  sharded_state_ = ShardedState::kShardedPostForward;
  record(TrainingEvent::Kind::kReshard, training_state_);
}

void FSDPParamGroup::wait_for_all_gather() {
  if (all_gather_) {
    all_gather_->work->wait();
  }
}

void FSDPParamGroup::drop_unshard() {
  if (all_gather_) {
    const AllGatherResult result = std::move(*all_gather_);
    all_gather_.reset();
    result.work->wait();
  }
}

void FSDPParamGroup::record_post_forward() {
  if (!params_.empty()) {
    post_forward_indices_.push_back(context_->post_forward_order.size());
    context_->post_forward_order.push_back(this);
  }
}

void FSDPParamGroup::pre_backward(bool prefetch) {
  if (training_state_ == TrainingState::kPreBackward) {
    return;
  }
  training_state_ = TrainingState::kPreBackward;
  unshard(TrainingState::kPreBackward);
  wait_for_unshard();
  if (!prefetch || post_forward_indices_.empty()) {
    return;
  }
  const size_t index = post_forward_indices_.back();
  post_forward_indices_.pop_back();
  if (index > 0) {
    context_->post_forward_order[index - 1]->unshard(TrainingState::kPreBackward);
  }
}

void FSDPParamGroup::post_backward() {
  RECORD_FUNCTION("narrowgauge::fsdp::post_backward", c10::ArrayRef<const c10::IValue>());
  const c10::NoGradGuard no_grad;
  training_state_ = TrainingState::kPostBackward;
  const bool reduces = requires_gradient_sync_ && has_collectives();
  if (reduces && (has_unsharded_grad() || (requires_all_reduce_ && has_partial()))) {
    start_reductions();
  } else if (reshard_after_backward_) {
    reshard();
  }
  if (!requires_gradient_sync_ && has_collectives()) {
    for (const auto& param : params_) {
      param->accumulate_unsharded_grad(reduce_dtype_of(*param));
    }
  } else if (!has_collectives() && has_unsharded_grad()) {
    hand_over_gradients();
  }
  if (!params_.empty()) {
    record(TrainingEvent::Kind::kPostBackward, training_state_);
  }
}

void FSDPParamGroup::start_reductions() {
  finish_reduction();
  std::vector<std::vector<at::Tensor>> gradients;
  for (const Reduction& reduction : reductions_) {
    gradients.emplace_back();
    for (FSDPParam* param : reduction.params) {
      gradients.back().push_back(param->take_unsharded_grad());
    }
  }
  // Room first: for the buffers below, the parameters and the last group's buffer go.
  if (reshard_after_backward_) {
    reshard();
  }
  release_reduce_inputs();
  context_->reduce_scattering = this;
  context_->reducing.push_back(this);
  reducing_ = true;
  reduced_ = true;
  const at::Device device = params_[0]->device();
  for (size_t i = 0; i < reductions_.size(); ++i) {
    Reduction& reduction = reductions_[i];
    std::vector<std::vector<int64_t>> sizes;
    for (const FSDPParam* param : reduction.params) {
      sizes.push_back(param->global_sizes());
    }
    reduction.is_partial = !requires_all_reduce_ && replicate_axis_->size() > 1;
    const ReduceSpec spec{
        .dtype = reduction.dtype,
        .divide_factor = gradient_divide_factor_,
        .all_reduce = !reduction.is_partial,
        .device = device,
        .offload_to_cpu = offload_policy_.has_value(),
        .pin_memory = offload_policy_ && offload_policy_->pin_memory && !device.is_cpu()};
    reduction.result = foreach_reduce(std::move(gradients[i]), sizes, spec, shard_axis_,
                                      replicate_axis_, reduction.partial, context_->streams);
  }
}

bool FSDPParamGroup::offloads_from_device() const {
  return offload_policy_ && !params_.empty() && !params_[0]->device().is_cpu();
}

// How many groups may still be reducing when the next one begins. None where the reduction is one
// collective, since that must be over for its input to be freed; the last one where an all-reduce
// follows; all where the CPU would have to wait for the device.
size_t FSDPParamGroup::max_reducing() const {
  if (offloads_from_device()) {
    return context_->reducing.size();
  }
  return replicate_axis_->size() > 1 ? 1 : 0;
}

void FSDPParamGroup::release_reduce_inputs() {
  if (FSDPParamGroup* last = std::exchange(context_->reduce_scattering, nullptr)) {
    for (Reduction& reduction : last->reductions_) {
      if (reduction.result.work) {
        reduction.result.reduce_scatter->wait();
        reduction.result.input.reset();
      }
    }
  }
  // Of gradients on their way to the CPU only the last group's stay on the device.
  for (size_t i = 0; offloads_from_device() && i + 1 < context_->reducing.size(); ++i) {
    for (Reduction& reduction : context_->reducing[i]->reductions_) {
      if (reduction.result.device_output.defined()) {
        reduction.result.work->wait();
        reduction.result.device_output.reset();
      }
    }
  }
  while (context_->reducing.size() > max_reducing()) {
    context_->reducing.front()->finish_reduction();
  }
}

void FSDPParamGroup::finish_reduction() {
  if (!reducing_) {
    return;
  }
  const c10::NoGradGuard no_grad;
  wait_for_reductions();
  for (Reduction& reduction : reductions_) {
    const at::Tensor output = reduction.result.output;
    reduction.result = {};
    reduction.partial = reduction.is_partial ? output : at::Tensor();
    if (reduction.is_partial) {
      continue;
    }
    std::vector<std::vector<int64_t>> sizes;
    for (const FSDPParam* param : reduction.params) {
      sizes.push_back(param->global_sizes());
    }
    const std::vector<at::Tensor> gradients =
        sharded_gradients(output, sizes, shard_axis_->size(), shard_axis_->rank());
    for (size_t i = 0; i < gradients.size(); ++i) {
      reduction.params[i]->add_sharded_grad(gradients[i]);
    }
  }
  forget_reductions();
}

void FSDPParamGroup::wait_for_reductions() {
  for (const Reduction& reduction : reductions_) {
    if (reduction.result.work) {
      reduction.result.work->wait();
    }
  }
  if (reducing_ && offloads_from_device()) {
    // wait() has ordered the copies to the CPU before what the device does next, not the CPU.
    c10::impl::VirtualGuardImpl(params_[0]->device().type())
        .getStream(params_[0]->device())
        .synchronize();
  }
}

void FSDPParamGroup::forget_reductions() {
  for (Reduction& reduction : reductions_) {
    reduction.result = {};
  }
  if (context_->reduce_scattering == this) {
    context_->reduce_scattering = nullptr;
  }
  auto& reducing = context_->reducing;
  reducing.erase(std::remove(reducing.begin(), reducing.end(), this), reducing.end());
  reducing_ = false;
}

void FSDPParamGroup::hand_over_gradients() {
  for (const auto& param : params_) {
    if (!param->requires_grad()) {
      continue;
    }
    at::Tensor gradient = param->take_unsharded_grad();
    if (!gradient.defined()) {
      gradient = at::zeros(param->global_sizes(), param->unsharded_param().options());
    } else if (gradient_divide_factor_ != 1.0) {
      gradient.div_(gradient_divide_factor_);
    }
    param->add_sharded_grad(gradient);
  }
  reduced_ = reduced_ || requires_gradient_sync_;
}

void FSDPParamGroup::finalize_backward() {
  drop_unshard();
  finish_reduction();
  post_forward_indices_.clear();
  if (std::exchange(reduced_, false)) {
    // An optimizer step follows. Whether it writes through the tensor, which counts a version, or
    // through a plain pointer, which does not, is its own affair.
    for (const Reduction& reduction : reductions_) {
      for (FSDPParam* param : reduction.params) {
        param->mark_changed();
      }
    }
  }
}

void FSDPParamGroup::reset() {
  drop_unshard();
  wait_for_reductions();
  forget_reductions();
  reshard();
  for (const auto& param : params_) {
    param->unsharded_param().mutable_grad().reset();
  }
  post_forward_indices_.clear();
  training_state_ = TrainingState::kIdle;
}

bool FSDPParamGroup::is_stale() const {
  return (all_gather_ || sharded_state_ != ShardedState::kSharded) &&
         std::any_of(params_.begin(), params_.end(),
                     [](const auto& param) { return param->is_stale(); });
}

bool FSDPParamGroup::has_unsharded_grad() const {
  return std::any_of(params_.begin(), params_.end(),
                     [](const auto& param) { return param->has_unsharded_grad(); });
}

bool FSDPParamGroup::has_partial() const {
  return std::any_of(reductions_.begin(), reductions_.end(),
                     [](const Reduction& reduction) { return reduction.partial.defined(); });
}

void FSDPParamGroup::check_materialized() const {
  for (const auto& param : params_) {
    TORCH_CHECK(!param->is_meta(), "expected parameters on a device, got '", param->fqn(),
                "' on meta; call materialize after fully_shard");
  }
}

void FSDPParamGroup::record(TrainingEvent::Kind kind, TrainingState state) const {
  if (context_->recorder) {
    context_->recorder({kind, name_, state});
  }
}

at::ScalarType FSDPParamGroup::reduce_dtype_of(const FSDPParam& param) const {
  return reduce_dtype_.value_or(param.param_dtype());
}

}  // namespace narrowgauge::fsdp

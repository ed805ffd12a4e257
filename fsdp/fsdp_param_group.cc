#include "fsdp/fsdp_param_group.h"

#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "fsdp/collectives.h"

namespace narrowgauge::fsdp {

FSDPParamGroup::FSDPParamGroup(std::vector<std::unique_ptr<FSDPParam>> params,
                               comm::DeviceMesh mesh, const FullyShardOptions& options)
    : params_(std::move(params)),
      mesh_(std::move(mesh)),
      reduce_dtype_(options.mp_policy.reduce_dtype),
      gradient_divide_factor_(options.gradient_divide_factor) {
  TORCH_CHECK(gradient_divide_factor_ > 0.0, "expected gradient_divide_factor > 0, got ",
              gradient_divide_factor_);
}

void FSDPParamGroup::unshard() {
  const c10::NoGradGuard no_grad;
  for (const auto& param : params_) {
    TORCH_CHECK(!param->is_meta(), "expected parameters on a device, got '", param->fqn(),
                "' on meta; call materialize after fully_shard");
  }
  if (!is_sharded_mesh()) {
    for (const auto& param : params_) {
      param->refresh_if_changed();
    }
    return;
  }
  if (unsharded_) {
    return;
  }
  std::vector<at::Tensor> inputs;
  std::vector<at::Tensor> outputs;
  std::vector<std::vector<at::Tensor>> outputs_of_param;
  for (const auto& param : params_) {
    const std::vector<at::Tensor> param_inputs = param->all_gather_inputs();
    outputs_of_param.push_back(param->all_gather_outputs(param_inputs));
    inputs.insert(inputs.end(), param_inputs.begin(), param_inputs.end());
    outputs.insert(outputs.end(), outputs_of_param.back().begin(), outputs_of_param.back().end());
  }
  // Set before the collective: if it throws, the storage is allocated and reshard must free it.
  unsharded_ = true;
  foreach_all_gather(inputs, outputs, mesh_.shard_axis());
  for (size_t i = 0; i < params_.size(); ++i) {
    params_[i]->finish_unshard(std::move(outputs_of_param[i]));
  }
}

void FSDPParamGroup::reshard() {
  if (!unsharded_) {
    return;
  }
  for (const auto& param : params_) {
    param->reshard();
  }
  unsharded_ = false;
}

bool FSDPParamGroup::has_unsharded_grad() const {
  return std::any_of(params_.begin(), params_.end(),
                     [](const auto& param) { return param->has_unsharded_grad(); });
}

void FSDPParamGroup::discard_unsharded_grads() {
  for (const auto& param : params_) {
    param->unsharded_param().mutable_grad().reset();
  }
}

void FSDPParamGroup::post_backward() {
  const c10::NoGradGuard no_grad;
  if (!has_unsharded_grad()) {
    reshard();
  } else if (!needs_reduction()) {
    hand_over_gradients();
  } else if (requires_gradient_sync_) {
    reduce_gradients();
  } else {
    for (const auto& param : params_) {
      param->accumulate_unsharded_grad(reduce_dtype_);
    }
    reshard();
  }
}

void FSDPParamGroup::reduce_gradients() {
  std::vector<FSDPParam*> trainable;
  std::vector<at::Tensor> gradients;
  std::vector<std::vector<int64_t>> sizes;
  for (const auto& param : params_) {
    if (param->requires_grad()) {
      trainable.push_back(param.get());
      gradients.push_back(param->take_unsharded_grad());
      sizes.push_back(param->global_sizes());
    }
  }
  reshard();
  const std::vector<at::Tensor> sharded_gradients =
      foreach_reduce(std::move(gradients), sizes, reduce_dtype_, gradient_divide_factor_,
                     mesh_.shard_axis(), mesh_.replicate_axis());
  for (size_t i = 0; i < trainable.size(); ++i) {
    trainable[i]->add_sharded_grad(sharded_gradients[i]);
  }
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
    if (requires_gradient_sync_) {
      // The last micro-batch: an optimizer step follows. Whether it writes through the tensor,
      // which counts a version, or through a plain pointer, which does not, is its own affair.
      param->mark_changed();
    }
  }
}

}  // namespace narrowgauge::fsdp

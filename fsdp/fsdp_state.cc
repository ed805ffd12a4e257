#include "fsdp/fsdp_state.h"

#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>

#include <utility>

namespace narrowgauge::fsdp {
namespace {

at::Tensor cast_floating(const at::Tensor& tensor, std::optional<at::ScalarType> dtype) {
  return dtype && tensor.is_floating_point() ? tensor.to(*dtype) : tensor;
}

bool inside_backward() { return torch::autograd::get_current_graph_task_id() != -1; }

bool takes_part_in_backward(const at::Tensor& tensor) {
  return c10::GradMode::is_enabled() && tensor.requires_grad();
}

void collect_states(const nn::Layer& layer, std::vector<std::shared_ptr<FSDPState>>& states) {
  for (const auto& [name, child] : layer.child_layers()) {
    collect_states(*child, states);
  }
  if (auto state = FSDPState::find(layer)) {
    states.push_back(std::move(state));
  }
}

}  // namespace

FSDPState::FSDPState(std::unique_ptr<FSDPParamGroup> group, const FullyShardOptions& options)
    : torch::nn::Module("FSDPState"),
      group_(std::move(group)),
      mp_policy_(options.mp_policy),
      reshard_after_forward_(options.reshard_after_forward) {}

void FSDPState::attach(const std::shared_ptr<FSDPState>& state, nn::Layer& layer) {
  layer.register_module(kChildName, state);
  // The layer owns both its hooks and the state; a raw pointer to it lives as long as they do.
  layer.register_forward_pre_hook(
      [state, &layer](at::Tensor input) { return state->pre_forward(layer, std::move(input)); });
  layer.register_forward_hook(
      [state](at::Tensor output) { return state->post_forward(std::move(output)); });
}

std::shared_ptr<FSDPState> FSDPState::find(const nn::Layer& layer) {
  for (const auto& child : layer.named_children()) {
    if (child.key() == kChildName) {
      return std::dynamic_pointer_cast<FSDPState>(child.value());
    }
  }
  return nullptr;
}

std::vector<std::shared_ptr<FSDPState>> FSDPState::find_all(const nn::Layer& root) {
  std::vector<std::shared_ptr<FSDPState>> states;
  collect_states(root, states);
  return states;
}

FSDPContext& FSDPState::context(const nn::Layer& layer) {
  if (!context_) {
    const auto context = std::make_shared<FSDPContext>();
    for (const auto& state : find_all(layer)) {
      context->states.push_back(state.get());
      state->context_ = context;
      state->is_root_ = state.get() == this;
    }
  }
  return *context_;
}

at::Tensor FSDPState::pre_forward(const nn::Layer& layer, at::Tensor input) {
  TORCH_CHECK(input.defined(), "expected a tensor as first input of a sharded layer, got none");
  context(layer);
  if (mp_policy_.cast_forward_inputs) {
    input = cast_floating(std::move(input), mp_policy_.param_dtype);
  }
  if (is_root_ && !inside_backward()) {
    begin_root_forward();
  }
  if (training_state_ == TrainingState::kBackward) {
    return input;
  }
  group_->unshard();
  if (takes_part_in_backward(input)) {
    input = input.view_as(input);
    input.register_hook([state = self()](const at::Tensor&) { state->post_backward(); });
  }
  return input;
}

at::Tensor FSDPState::post_forward(at::Tensor output) {
  output = cast_floating(std::move(output), mp_policy_.output_dtype);
  const bool backward_follows = takes_part_in_backward(output);
  const bool keep = training_state_ == TrainingState::kBackward || context_->gathered_scopes > 0 ||
                    (backward_follows && !reshard_after_forward_.value_or(!is_root_));
  if (!keep) {
    group_->reshard();
  }
  if (backward_follows) {
    output.register_hook([state = self()](const at::Tensor&) { state->pre_backward(); });
  }
  return output;
}

void FSDPState::begin_root_forward() {
  // After an exception, or a forward without its backward, the last step's traces remain: values
  // older than the optimizer's step since, gradients of half a backward.
  context_->final_callback_queued = false;
  for (FSDPState* state : context_->states) {
    state->training_state_ = TrainingState::kIdle;
    state->group_->discard_unsharded_grads();
    if (context_->gathered_scopes == 0) {
      state->group_->reshard();
    }
  }
}

void FSDPState::pre_backward() {
  queue_final_callback();
  training_state_ = TrainingState::kBackward;
  group_->unshard();
}

void FSDPState::post_backward() {
  training_state_ = TrainingState::kIdle;
  group_->post_backward();
}

void FSDPState::queue_final_callback() {
  if (context_->final_callback_queued) {
    return;
  }
  context_->final_callback_queued = true;
  torch::autograd::Engine::get_default_engine().queue_callback([context = context_] {
    context->final_callback_queued = false;
    for (FSDPState* state : context->states) {
      if (state->training_state_ == TrainingState::kBackward ||
          state->group_->has_unsharded_grad()) {
        state->post_backward();
      }
    }
  });
}

std::shared_ptr<FSDPState> FSDPState::self() {
  return std::static_pointer_cast<FSDPState>(shared_from_this());
}

}  // namespace narrowgauge::fsdp

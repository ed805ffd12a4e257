#include "fsdp/fsdp_state.h"

#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <map>
#include <unordered_map>
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

// A walk over all layers with the states found on the way, each once.
struct Walk {
  std::vector<std::shared_ptr<FSDPState>> pre_order;
  std::vector<std::shared_ptr<FSDPState>> post_order;
  std::map<const FSDPState*, std::string> names;  // of the layers of each

  void visit(const nn::Layer& layer, const std::string& name) {
    const auto state = FSDPState::find(layer);
    const bool first = state && add(pre_order, state);
    if (state) {
      std::string& names_of_state = names[state.get()];
      names_of_state += first ? name : ", " + name;
    }
    for (const auto& [child_name, child] : layer.child_layers()) {
      visit(*child, name.empty() ? child_name : name + "." + child_name);
    }
    if (state) {
      add(post_order, state);
    }
  }

  static bool add(std::vector<std::shared_ptr<FSDPState>>& states,
                  const std::shared_ptr<FSDPState>& state) {
    if (std::find(states.begin(), states.end(), state) != states.end()) {
      return false;
    }
    states.push_back(state);
    return true;
  }
};

std::vector<FSDPState*> pointers(const std::vector<std::shared_ptr<FSDPState>>& states) {
  std::vector<FSDPState*> result;
  for (const auto& state : states) {
    result.push_back(state.get());
  }
  return result;
}

}  // namespace

FSDPState::FSDPState(std::unique_ptr<FSDPParamGroup> group, const FullyShardOptions& options,
                     std::vector<FSDPParam::Owner> ignored)
    : torch::nn::Module("FSDPState"),
      group_(std::move(group)),
      mp_policy_(options.mp_policy),
      reshard_after_forward_(options.reshard_after_forward),
      ignored_(std::move(ignored)) {}

void FSDPState::attach(const std::shared_ptr<FSDPState>& state,
                       const std::vector<nn::Layer*>& layers) {
  std::string name;
  for (nn::Layer* layer : layers) {
    layer->register_module(kChildName, state);
    state->layers_.insert(layer);
    name += (name.empty() ? "" : ", ") + layer->name();
    // The layer owns both its hooks and the state; a raw pointer to it lives as long as they do.
    layer->register_forward_pre_hook(
        [state, layer](at::Tensor input) { return state->pre_forward(*layer, std::move(input)); });
    layer->register_forward_hook([state, layer](at::Tensor output) {
      return state->post_forward(*layer, std::move(output));
    });
  }
  state->group_->set_name(std::move(name));
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
  Walk walk;
  walk.visit(root, "");
  return walk.post_order;
}

void FSDPState::add_ignored_to(std::unordered_set<const at::TensorImpl*>& tensors) const {
  for (const FSDPParam::Owner& owner : ignored_) {
    tensors.insert(owner.tensor().unsafeGetTensorImpl());
  }
}

FSDPContext& FSDPState::context(const nn::Layer& layer) {
  if (!context_) {
    TORCH_CHECK(layers_.size() == 1, "expected one layer as root, got the group of ",
                group_->name(), "; call fully_shard on the whole model, too, and run that");
    Walk walk;
    walk.visit(layer, "");
    const auto context =
        std::make_shared<FSDPContext>(pointers(walk.post_order), pointers(walk.pre_order));
    for (const auto& state : walk.post_order) {
      state->context_ = context;
      state->is_root_ = state.get() == this;
      state->group_->set_name(walk.names.at(state.get()));
    }
  }
  return *context_;
}

void FSDPState::set_states_to_forward_prefetch(std::vector<std::shared_ptr<FSDPState>> states) {
  forward_prefetch_.assign(states.begin(), states.end());
}

void FSDPState::set_states_to_backward_prefetch(std::vector<std::shared_ptr<FSDPState>> states) {
  backward_prefetch_.assign(states.begin(), states.end());
}

at::Tensor FSDPState::pre_forward(const nn::Layer& layer, at::Tensor input) {
  TORCH_CHECK(input.defined(), "expected a tensor as first input of a sharded layer, got none");
  context(layer);
  if (mp_policy_.cast_forward_inputs) {
    input = cast_floating(std::move(input), mp_policy_.param_dtype);
  }
  if (inside_backward()) {
    // Now, while the outermost backward runs: a recomputation's own backward ends before it.
    context_->queue_final_callback(context_);
  } else {
    context_->begin_forward(this);
  }
  if (!layers_to_run_.empty()) {
    return input;  // another layer of the group was first
  }
  if (layers_.size() > 1) {
    layers_to_run_ = layers_;
  }
  if (group_->training_state() == TrainingState::kPreBackward) {
    // Recomputed between its own hooks, which an earlier post_backward may have left resharded.
    group_->unshard(TrainingState::kPreBackward);
    group_->wait_for_unshard();
    return input;
  }
  group_->set_training_state(TrainingState::kForward);
  group_->unshard(TrainingState::kForward);
  group_->wait_for_unshard();
  if (!inside_backward()) {
    prefetch_forward();
  }
  if (takes_part_in_backward(input)) {
    input = input.view_as(input);
    input.register_hook([state = self()](const at::Tensor&) { state->group_->post_backward(); });
  }
  return input;
}

void FSDPState::prefetch_forward() {
  FSDPState* next = context_->next_in_forward(this);
  if (forward_prefetch_.empty() && next != nullptr && context_->comm().streams.asynchronous) {
    next->group_->unshard(TrainingState::kForward);
  }
  for (const auto& target : forward_prefetch_) {
    if (const auto state = target.lock()) {
      state->group_->unshard(TrainingState::kForward);
    }
  }
}

at::Tensor FSDPState::post_forward(const nn::Layer& layer, at::Tensor output) {
  output = cast_floating(std::move(output), mp_policy_.output_dtype);
  layers_to_run_.erase(&layer);
  if (!layers_to_run_.empty() || group_->training_state() == TrainingState::kPreBackward) {
    return output;
  }
  if (!inside_backward()) {
    reshard_after_forward();
    // Where gradients are off inside a forward that has them, the layer will be recomputed.
    if (context_->trains() && (!c10::GradMode::is_enabled() || output.requires_grad())) {
      group_->record_post_forward();
    }
  }
  if (takes_part_in_backward(output)) {
    output.register_hook([state = self()](const at::Tensor&) { state->pre_backward(); });
  }
  group_->set_training_state(TrainingState::kIdle);
  if (!inside_backward()) {
    context_->end_forward(this);
  }
  return output;
}

void FSDPState::reshard_after_forward() {
  if (context_->gathered_scopes > 0) {
    return;
  }
  const ReshardAfterForward policy = reshard_after_forward_.value_or(!is_root_);
  if (!context_->trains() || policy == ReshardAfterForward(true)) {
    group_->reshard();
  } else if (const int* n = std::get_if<int>(&policy)) {
    if (neighbours_) {
      group_->reshard_post_forward(neighbours_);
    } else if (*n > 1) {
      group_->reshard();
    }
  }
}

void FSDPState::pre_backward() {
  context_->queue_final_callback(context_);
  group_->pre_backward(/*prefetch=*/backward_prefetch_.empty());
  for (const auto& target : backward_prefetch_) {
    if (const auto state = target.lock()) {
      state->group_->unshard(TrainingState::kPreBackward);
    }
  }
}

void FSDPState::split_neighbours() {
  const int* n = reshard_after_forward_ ? std::get_if<int>(&*reshard_after_forward_) : nullptr;
  if (n != nullptr && *n > 1 && *n < group_->shard_axis().size()) {
    neighbours_ = context_->neighbours(group_->shard_axis(), *n);
  }
}

void FSDPState::finalize_backward() {
  group_->finalize_backward();
  if (!layers_to_run_.empty()) {
    TORCH_WARN_ONCE("expected all layers of a group to run in each forward, got ",
                    layers_.size() - layers_to_run_.size(), " of the ", layers_.size(), " of ",
                    group_->name(), "; shard those that run apart on their own");
    layers_to_run_.clear();
  }
}

void FSDPState::reset() {
  layers_to_run_.clear();
  group_->reset();
}

std::shared_ptr<FSDPState> FSDPState::self() {
  return std::static_pointer_cast<FSDPState>(shared_from_this());
}

std::vector<std::pair<std::string, FSDPParam*>> params_in_model_order(const nn::Layer& root) {
  std::unordered_map<const at::TensorImpl*, FSDPParam*> params;
  std::unordered_set<const at::TensorImpl*> ignored;
  for (const auto& state : FSDPState::find_all(root)) {
    for (const auto& param : state->group().params()) {
      params[param->unsharded_param().unsafeGetTensorImpl()] = param.get();
    }
    state->add_ignored_to(ignored);
  }
  std::unordered_set<const FSDPParam*> seen;
  std::vector<std::pair<std::string, FSDPParam*>> ordered;
  for (const auto& parameter : root.named_parameters()) {
    const at::TensorImpl* tensor = parameter.value().unsafeGetTensorImpl();
    const auto param = params.find(tensor);
    TORCH_CHECK(param != params.end() || ignored.count(tensor) > 0,
                "expected every parameter to be sharded, got '", parameter.key(),
                "', which is not; call fully_shard on the root last");
    if (param != params.end() && seen.insert(param->second).second) {
      ordered.emplace_back(parameter.key(), param->second);
    }
  }
  return ordered;
}

}  // namespace narrowgauge::fsdp

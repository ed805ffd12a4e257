#include "fsdp/fsdp_module.h"

#include <c10/util/Exception.h>

#include <utility>

#include "fsdp/fsdp_param_group.h"
#include "fsdp/fsdp_state.h"

namespace narrowgauge::fsdp {
namespace {

std::shared_ptr<FSDPState> state_of(const nn::Layer& layer) {
  auto state = FSDPState::find(layer);
  TORCH_CHECK(state, "expected a sharded layer, got ", layer.name(),
              ", which is not; call fully_shard on it");
  return state;
}

FSDPContext& context_of(const nn::Layer& root) {
  const auto state = FSDPState::find(root);
  TORCH_CHECK(state, "expected a sharded root, got ", root.name(), "; call fully_shard on it");
  return state->context(root);
}

template <typename Function>
void for_each_state(const nn::Layer& root, const Function& function) {
  const auto states = FSDPState::find_all(root);
  TORCH_CHECK(!states.empty(), "expected a layer that is sharded or has such below, got ",
              root.name(), "; call fully_shard on it");
  for (const auto& state : states) {
    function(*state);
  }
}

std::vector<std::shared_ptr<FSDPState>> states_of(const std::vector<nn::Layer*>& layers) {
  std::vector<std::shared_ptr<FSDPState>> states;
  for (const nn::Layer* layer : layers) {
    states.push_back(state_of(*layer));
  }
  return states;
}

}  // namespace

void set_requires_gradient_sync(nn::Layer& root, bool enabled) {
  for_each_state(root, [&](auto& state) { state.group().set_requires_gradient_sync(enabled); });
}

void set_requires_all_reduce(nn::Layer& root, bool enabled) {
  for_each_state(root, [&](auto& state) { state.group().set_requires_all_reduce(enabled); });
}

void set_reshard_after_backward(nn::Layer& root, bool enabled) {
  for_each_state(root, [&](auto& state) { state.group().set_reshard_after_backward(enabled); });
}

void set_is_last_backward(nn::Layer& root, bool enabled) {
  context_of(root).set_is_last_backward(enabled);
}

void set_reshard_after_forward(nn::Layer& layer, bool enabled, bool recurse) {
  if (recurse) {
    for_each_state(layer, [&](auto& state) { state.set_reshard_after_forward(enabled); });
  } else {
    state_of(layer)->set_reshard_after_forward(enabled);
  }
}

void set_unshard_in_backward(nn::Layer& layer, bool enabled) {
  state_of(layer)->group().set_unshard_in_backward(enabled);
}

void set_modules_to_forward_prefetch(nn::Layer& layer, const std::vector<nn::Layer*>& layers) {
  state_of(layer)->set_states_to_forward_prefetch(states_of(layers));
}

void set_modules_to_backward_prefetch(nn::Layer& layer, const std::vector<nn::Layer*>& layers) {
  state_of(layer)->set_states_to_backward_prefetch(states_of(layers));
}

void UnshardHandle::wait() {
  if (const auto state = std::exchange(state_, nullptr)) {
    state->group().wait_for_unshard();
  }
}

UnshardHandle unshard(nn::Layer& layer) {
  auto state = state_of(layer);
  state->group().unshard(state->group().training_state());
  return UnshardHandle(std::move(state));
}

void reshard(nn::Layer& layer) {
  const auto state = state_of(layer);
  state->group().drop_unshard();
  state->group().reshard();
}

GatheredParameters::GatheredParameters(nn::Layer& root) : root_(root) {
  FSDPContext& context = context_of(root);
  for (FSDPState* state : context.states()) {
    state->group().unshard(TrainingState::kForward);
    state->group().wait_for_unshard();
  }
  ++context.gathered_scopes;
}

GatheredParameters::~GatheredParameters() {
  FSDPContext& context = context_of(root_);
  if (--context.gathered_scopes == 0) {
    for (FSDPState* state : context.states()) {
      state->group().reshard();
    }
  }
}

void set_post_accumulate_grad_hook(nn::Layer& root, const std::string& fqn,
                                   FSDPParam::PostAccumulateGradHook hook) {
  for (const auto& [name, param] : params_in_model_order(root)) {
    if (name == fqn) {
      param->set_post_accumulate_grad_hook(std::move(hook));
      return;
    }
  }
  TORCH_CHECK(false, "expected the name of a sharded parameter, got '", fqn,
              "'; sharded_parameters lists them");
}

void set_streams(nn::Layer& root, CommStreams streams) {
  FSDPContext& context = context_of(root);
  TORCH_CHECK(!context.in_forward(), "expected streams to be set outside forward");
  context.comm().streams = std::move(streams);
}

void set_event_recorder(nn::Layer& root, EventRecorder recorder) {
  context_of(root).comm().recorder = std::move(recorder);
}

}  // namespace narrowgauge::fsdp

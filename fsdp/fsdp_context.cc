#include "fsdp/fsdp_context.h"

#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/engine.h>

#include <algorithm>
#include <utility>

#include "fsdp/fsdp_state.h"

namespace narrowgauge::fsdp {

FSDPContext::FSDPContext(std::vector<FSDPState*> post_order, std::vector<FSDPState*> pre_order)
    : states_(std::move(post_order)),
      root_(pre_order.front()),
      forward_order_(std::move(pre_order)) {
  const auto communicating = std::find_if(states_.begin(), states_.end(), [](FSDPState* state) {
    return state->group().has_collectives();
  });
  if (communicating != states_.end()) {
    comm_->streams = CommStreams::beside((*communicating)->group().params()[0]->device());
  }
  for (FSDPState* state : states_) {
    state->group().set_comm_context(comm_);
  }
}

void FSDPContext::begin_forward(FSDPState* state) {
  if (state == root_ && (forward_root_ != nullptr || final_callback_queued_)) {
    reset();
  }
  if (forward_root_ == nullptr) {
    if (!std::exchange(split_neighbours_, true)) {
      wait_for_all_gathers();
      for (FSDPState* each : states_) {
        each->split_neighbours();
      }
    }
    forward_root_ = state;
    trains_ = c10::GradMode::is_enabled();
    forward_position_ = 0;
    forward_so_far_.clear();
  }
}

void FSDPContext::end_forward(FSDPState* state) {
  if (state != forward_root_) {
    return;
  }
  // The caller may use the communicators now, so a prefetch that went wrong must be over.
  wait_for_all_gathers();
  if (state == root_) {
    forward_order_ = std::move(forward_so_far_);
  }
  forward_root_ = nullptr;
}

void FSDPContext::wait_for_all_gathers() {
  for (FSDPState* state : states_) {
    state->group().wait_for_all_gather();
  }
}

FSDPState* FSDPContext::next_in_forward(FSDPState* state) {
  forward_so_far_.push_back(state);
  const auto begin = forward_order_.begin() + static_cast<int64_t>(forward_position_);
  const auto found = std::find(begin, forward_order_.end(), state);
  if (found == forward_order_.end()) {
    return nullptr;  // another way than last time: no guess
  }
  forward_position_ = found + 1 - forward_order_.begin();
  return forward_position_ < forward_order_.size() ? forward_order_[forward_position_] : nullptr;
}

void FSDPContext::queue_final_callback(const std::shared_ptr<FSDPContext>& self) {
  if (!final_callback_queued_) {
    final_callback_queued_ = true;
    torch::autograd::Engine::get_default_engine().queue_callback(
        [self] { self->finish_backward(); });
  }
}

void FSDPContext::finish_backward() {
  for (FSDPState* state : states_) {
    // Layers whose input needs no gradient, such as the root, which gets token ids, and layers that
    // took no part.
    if (state->group().training_state() != TrainingState::kPostBackward) {
      state->group().post_backward();
    }
    state->group().set_training_state(TrainingState::kIdle);
  }
  if (is_last_backward_) {
    for (FSDPState* state : states_) {
      state->finalize_backward();
    }
    comm_->post_forward_order.clear();
  }
  final_callback_queued_ = false;
}

void FSDPContext::reset() {
  forward_root_ = nullptr;
  final_callback_queued_ = false;
  comm_->post_forward_order.clear();
  for (FSDPState* state : states_) {
    state->reset();
  }
}

std::shared_ptr<comm::Communicator> FSDPContext::neighbours(comm::Communicator& shard_axis, int n) {
  auto& communicator = neighbours_[{&shard_axis, n}];
  if (!communicator) {
    communicator = shard_axis.split(shard_axis.rank() / n, shard_axis.rank());
  }
  return communicator;
}

}  // namespace narrowgauge::fsdp

#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fsdp/fsdp_param_group.h"
#include "fsdp/policies.h"
#include "nn/layer.h"

namespace narrowgauge::fsdp {

class FSDPState;

// What the states below one root share. Made by the root's first forward.
struct FSDPContext {
  // In model order, the root last: the order of late gradients is part of the collective order.
  // Not owned: the layers own them, and every state owns this.
  std::vector<FSDPState*> states;
  bool final_callback_queued = false;
  // While positive, forward does not reshard. See GatheredParameters.
  int gathered_scopes = 0;
};

// The hooks of one sharded layer. A child module of that layer without parameters of its own, so
// that it lives and dies with the layer and no registry is needed to find it.
//
// One training step runs, for each sharded layer, root first:
//   pre_forward    cast the input, unshard, and mark the input: when its gradient is complete, so
//                  are those of the parameters, whose nodes autograd runs as soon as it can
//   post_forward   reshard, mark the output: when its gradient is complete, backward begins here
//   pre_backward   unshard
//   post_backward  reshard, reduce gradients
// and at the end of backward, once, post_backward for layers whose input needs no gradient (the
// root, which gets token ids). Everything runs on the thread that called forward and backward.
class FSDPState : public torch::nn::Module {
 public:
  static constexpr const char* kChildName = "fsdp_state";

  FSDPState(std::unique_ptr<FSDPParamGroup> group, const FullyShardOptions& options);

  // Registers `state` and its hooks with `layer`.
  static void attach(const std::shared_ptr<FSDPState>& state, nn::Layer& layer);
  // Null if `layer` is not sharded itself.
  static std::shared_ptr<FSDPState> find(const nn::Layer& layer);
  // Those of `root` and all layers below, in model order, the root last.
  static std::vector<std::shared_ptr<FSDPState>> find_all(const nn::Layer& root);

  FSDPParamGroup& group() { return *group_; }
  // Makes this state the root of `layer` if it is in no context yet.
  FSDPContext& context(const nn::Layer& layer);

 private:
  enum class TrainingState {
    kIdle,      // or forward: parameters may come and go
    kBackward,  // between pre_backward and post_backward: a forward here is a recomputation and
                // must not reshard
  };

  at::Tensor pre_forward(const nn::Layer& layer, at::Tensor input);
  at::Tensor post_forward(at::Tensor output);
  void pre_backward();
  void post_backward();
  void begin_root_forward();
  void queue_final_callback();
  std::shared_ptr<FSDPState> self();

  std::unique_ptr<FSDPParamGroup> group_;
  MixedPrecisionPolicy mp_policy_;
  std::optional<bool> reshard_after_forward_;
  TrainingState training_state_ = TrainingState::kIdle;
  std::shared_ptr<FSDPContext> context_;  // null until the first forward
  bool is_root_ = false;
};

}  // namespace narrowgauge::fsdp

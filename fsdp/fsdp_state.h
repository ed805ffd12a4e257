#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "fsdp/fsdp_context.h"
#include "fsdp/fsdp_param_group.h"
#include "fsdp/policies.h"
#include "nn/layer.h"

namespace narrowgauge::fsdp {

// The hooks of one group's layers. A child module of each of them without parameters of its own, so
// that it lives and dies with the layers and no registry is needed to find it.
//
// One training step runs, for each group, root first:
//   pre_forward    cast the input, unshard, prefetch, and mark the input: when its gradient is
//                  complete, so are those of the parameters, whose nodes autograd runs as soon as
//                  it can
//   post_forward   reshard, mark the output: when its gradient is complete, backward begins here
//   pre_backward   unshard, prefetch
//   post_backward  reshard, start to reduce gradients
// and at the end of backward, once, post_backward for groups whose input needs no gradient (the
// root, which gets token ids); then it waits for all reductions. A group of several layers runs
// pre_forward at the first that runs and post_forward at the last. Everything but the streams' work
// runs on the thread that called forward, or on autograd's.
//
// A forward inside backward is a recomputation (activation checkpointing): it unshards where it
// must, and leaves it to post_backward to reshard.
class FSDPState : public torch::nn::Module {
 public:
  static constexpr const char* kChildName = "fsdp_state";

  // ignored: the slots of parameters that fully_shard was told to leave alone.
  FSDPState(std::unique_ptr<FSDPParamGroup> group, const FullyShardOptions& options,
            std::vector<FSDPParam::Owner> ignored);

  // Registers `state` and its hooks with `layers`.
  static void attach(const std::shared_ptr<FSDPState>& state,
                     const std::vector<nn::Layer*>& layers);
  // Null if `layer` is not sharded itself.
  static std::shared_ptr<FSDPState> find(const nn::Layer& layer);
  // Those of `root` and all layers below, each once, in model order, the root last.
  static std::vector<std::shared_ptr<FSDPState>> find_all(const nn::Layer& root);

  FSDPParamGroup& group() { return *group_; }
  void add_ignored_to(std::unordered_set<const at::TensorImpl*>& tensors) const;
  // Makes this state the root of `layer` if it is in no context yet.
  FSDPContext& context(const nn::Layer& layer);

  void set_reshard_after_forward(bool enabled) { reshard_after_forward_ = enabled; }
  void set_states_to_forward_prefetch(std::vector<std::shared_ptr<FSDPState>> states);
  void set_states_to_backward_prefetch(std::vector<std::shared_ptr<FSDPState>> states);

  // Makes the communicator that ReshardAfterForward n needs. Collective; nothing may be under way.
  void split_neighbours();
  void finalize_backward();
  void reset();

 private:
  at::Tensor pre_forward(const nn::Layer& layer, at::Tensor input);
  at::Tensor post_forward(const nn::Layer& layer, at::Tensor output);
  void pre_backward();
  void prefetch_forward();
  void reshard_after_forward();
  std::shared_ptr<FSDPState> self();

  std::unique_ptr<FSDPParamGroup> group_;
  MixedPrecisionPolicy mp_policy_;
  std::optional<ReshardAfterForward> reshard_after_forward_;
  std::vector<FSDPParam::Owner> ignored_;
  std::shared_ptr<FSDPContext> context_;  // null until the first forward
  bool is_root_ = false;
  std::shared_ptr<comm::Communicator> neighbours_;  // null but for ReshardAfterForward n

  std::set<const nn::Layer*> layers_;
  std::set<const nn::Layer*> layers_to_run_;  // in this forward still; empty outside
  // Weakly: a model may be taken apart.
  std::vector<std::weak_ptr<FSDPState>> forward_prefetch_;
  std::vector<std::weak_ptr<FSDPState>> backward_prefetch_;
};

// All parameters below `root` but ignored ones, with names from there; a tied one once, under its
// first name. Throws c10::Error, naming it, if a parameter is not sharded.
std::vector<std::pair<std::string, FSDPParam*>> params_in_model_order(const nn::Layer& root);

}  // namespace narrowgauge::fsdp

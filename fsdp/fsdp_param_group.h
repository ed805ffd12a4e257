#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/device_mesh.h"
#include "fsdp/collectives.h"
#include "fsdp/comm_context.h"
#include "fsdp/fsdp_param.h"
#include "fsdp/policies.h"
#include "fsdp/training_event.h"

namespace narrowgauge::fsdp {

// The parameters that travel together: one all-gather to unshard, one reduce-scatter (and, on a
// replicate axis, one all-reduce) for their gradients, or one for each dtype they are reduced in.
// Where both axes have one rank there is no collective. Collective: every rank of the mesh calls
// the same methods in the same order.
//
// Both collectives run on streams. Between unshard and wait_for_unshard the group owns the gathered
// bytes, between post_backward and finish_reduction the buffers of the reduction.
class FSDPParamGroup {
 public:
  FSDPParamGroup(std::vector<std::unique_ptr<FSDPParam>> params, const comm::DeviceMesh& mesh,
                 const FullyShardOptions& options);
  // Waits for what is under way.
  ~FSDPParamGroup();

  const std::vector<std::unique_ptr<FSDPParam>>& params() const { return params_; }
  comm::Communicator& shard_axis() const { return *shard_axis_; }
  bool has_collectives() const;
  // Names of its layers from the root, for events and messages.
  void set_name(std::string name) { name_ = std::move(name); }
  const std::string& name() const { return name_; }
  void set_comm_context(std::shared_ptr<FSDPCommContext> context) { context_ = std::move(context); }
  TrainingState training_state() const { return training_state_; }
  void set_training_state(TrainingState state) { training_state_ = state; }

  // Starts to make the unsharded parameters usable, equal to the sharded ones. No effect if they
  // are or soon will be. state: for whose sake, see TrainingEvent.
  void unshard(TrainingState state);
  // Waits for that. No effect if it was not called.
  void wait_for_unshard();
  // Waits for its collective alone, after which the caller may use the communicator.
  void wait_for_all_gather();
  // Drops an unshard that nobody has waited for.
  void drop_unshard();
  // Frees the unsharded parameters, except where the shard axis has one rank. An unshard under way
  // stays.
  void reshard();
  // The same, but keeps a part of them among `neighbours`. See ReshardAfterForward.
  void reshard_post_forward(const std::shared_ptr<comm::Communicator>& neighbours);

  // Notes that a forward has ended that backward may come back to.
  void record_post_forward();
  // Unshards and waits; then, if asked, starts to unshard the group whose forward ended before.
  void pre_backward(bool prefetch);
  // Takes the gradients that autograd left on the unsharded parameters: reshards, starts to reduce
  // them, or moves them to the accumulators when gradients are not synchronised. No effect on
  // gradients when there are none. A trainable parameter without gradient counts as zero, because
  // other ranks may have one.
  void post_backward();
  // Waits for the reduction under way, if any, and gives the sharded parameters their gradients.
  void finish_reduction();
  // The end of backward: waits for what is under way, drops an unshard that nobody waited for.
  void finalize_backward();

  // Drops all that an exception left behind: unsharded parameters, reductions under way, gradients
  // that post_backward has not taken; not those accumulated.
  void reset();

  // See fsdp_module.h.
  void set_requires_gradient_sync(bool enabled) { requires_gradient_sync_ = enabled; }
  void set_requires_all_reduce(bool enabled) { requires_all_reduce_ = enabled; }
  void set_reshard_after_backward(bool enabled) { reshard_after_backward_ = enabled; }
  void set_unshard_in_backward(bool enabled) { unshard_in_backward_ = enabled; }

 private:
  enum class ShardedState { kSharded, kShardedPostForward, kUnsharded };

  // The reduction of all gradients of one dtype.
  struct Reduction {
    at::ScalarType dtype = at::kFloat;
    std::vector<FSDPParam*> params;
    ReduceResult result;
    bool is_partial = false;  // the result is summed over the shard axis alone
    at::Tensor partial;       // the sum of such results, waiting for the all-reduce
  };

  bool is_sharded_mesh() const { return shard_axis_->size() > 1; }
  bool is_stale() const;
  bool has_unsharded_grad() const;
  void check_materialized() const;
  void record(TrainingEvent::Kind kind, TrainingState state) const;
  at::ScalarType reduce_dtype_of(const FSDPParam& param) const;
  bool has_partial() const;
  bool offloads_from_device() const;
  size_t max_reducing() const;
  void start_reductions();
  void release_reduce_inputs();
  void wait_for_reductions();
  void forget_reductions();
  void hand_over_gradients();

  std::vector<std::unique_ptr<FSDPParam>> params_;
  std::shared_ptr<comm::Communicator> shard_axis_;
  std::shared_ptr<comm::Communicator> replicate_axis_;
  std::optional<at::ScalarType> reduce_dtype_;
  std::optional<CPUOffloadPolicy> offload_policy_;
  double gradient_divide_factor_;
  std::string name_;
  std::shared_ptr<FSDPCommContext> context_ = std::make_shared<FSDPCommContext>();

  TrainingState training_state_ = TrainingState::kIdle;
  ShardedState sharded_state_ = ShardedState::kSharded;
  std::shared_ptr<comm::Communicator> post_forward_axis_;  // of kShardedPostForward
  std::optional<AllGatherResult> all_gather_;              // under way
  std::vector<size_t> num_inputs_;                         // of each parameter in it
  std::vector<size_t> post_forward_indices_;  // this group's in the context's post_forward_order
  std::vector<Reduction> reductions_;         // one for each dtype, made by the first of them
  bool reducing_ = false;
  bool reduced_ = false;  // since the last finalize_backward

  bool requires_gradient_sync_ = true;
  bool requires_all_reduce_ = true;
  bool reshard_after_backward_ = true;
  bool unshard_in_backward_ = true;
};

}  // namespace narrowgauge::fsdp

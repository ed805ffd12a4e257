#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "comm/device_mesh.h"
#include "fsdp/fsdp_param.h"
#include "fsdp/policies.h"

namespace narrowgauge::fsdp {

// The parameters that travel together: one all-gather to unshard, one reduce-scatter (and, on a
// replicate axis, one all-reduce) for their gradients. Where both axes have one rank there is no
// collective. Collective: every rank of the mesh calls the same methods in the same order.
class FSDPParamGroup {
 public:
  FSDPParamGroup(std::vector<std::unique_ptr<FSDPParam>> params, comm::DeviceMesh mesh,
                 const FullyShardOptions& options);

  const std::vector<std::unique_ptr<FSDPParam>>& params() const { return params_; }
  bool is_unsharded() const { return unsharded_; }

  // Makes the unsharded parameters usable, equal to the sharded ones. No effect if they are.
  void unshard();
  // Frees them, except where the shard axis has one rank.
  void reshard();
  // Takes the gradients that autograd left on the unsharded parameters to the sharded ones, or to
  // the accumulators when gradients are not synchronised; reshards before it allocates for that. No
  // effect on gradients when there are none. A trainable parameter without gradient counts as zero,
  // because other ranks may have one.
  void post_backward();

  bool has_unsharded_grad() const;
  // Forgets gradients that post_backward has not taken, but not those accumulated.
  void discard_unsharded_grads();
  // See set_requires_gradient_sync in fully_shard.h.
  void set_requires_gradient_sync(bool enabled) { requires_gradient_sync_ = enabled; }

 private:
  bool is_sharded_mesh() const { return mesh_.shard_axis().size() > 1; }
  bool needs_reduction() const { return is_sharded_mesh() || mesh_.replicate_axis().size() > 1; }
  void reduce_gradients();
  void hand_over_gradients();

  std::vector<std::unique_ptr<FSDPParam>> params_;
  comm::DeviceMesh mesh_;
  std::optional<at::ScalarType> reduce_dtype_;
  double gradient_divide_factor_;
  bool unsharded_ = false;
  bool requires_gradient_sync_ = true;
};

}  // namespace narrowgauge::fsdp

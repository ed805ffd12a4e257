#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/device_mesh.h"
#include "fsdp/collectives.h"
#include "fsdp/policies.h"
#include "nn/layer.h"

namespace narrowgauge::fsdp {

// One parameter of a group. The words used everywhere (FSDP2's "Note: FSDP tensors"):
//
//   original parameter   what the layer held before fully_shard.
//   sharded parameter    this rank's rows of it, original dtype, [rows of this rank, ...]; the leaf
//                        that the optimizer updates and whose .grad() it reads. A view of the
//   sharded buffer       the same padded with zero rows to the size that all ranks have in common,
//                        [padded rows, ...]: the input of the all-gather. On the CPU if offloaded.
//   unsharded buffer     the output of the all-gather, [ranks * padded rows, ...] in param_dtype.
//   unsharded parameter  the layer's parameter and autograd's leaf: the unsharded buffer without
//                        its padding, [dim 0, ...]. Made once; resharding frees its storage and
//                        unsharding allocates it again under the same tensor, because autograd has
//                        saved aliases of it.
//   post-forward shard   this rank's part of the unsharded buffer where n neighbours keep a copy
//                        between them (ReshardAfterForward n), [ranks / n * padded rows, ...].
//
// Where the shard axis has one rank nothing is freed: the unsharded parameter is the sharded one
// itself, or its copy in param_dtype, refreshed when the sharded one has changed.
class FSDPParam {
 public:
  // A layer's slot. Not owned: the layer outlives this object, which it holds.
  struct Owner {
    nn::Layer* layer;
    std::string name;
    // What it holds now.
    at::Tensor tensor() const { return layer->named_parameters(/*recurse=*/false)[name]; }
  };
  using PostAccumulateGradHook = std::function<void(at::Tensor& sharded_param)>;

  // fqn: for messages. owners: all slots that hold `original` (more than one when tied); they hold
  // the unsharded parameter from now on. extension: may be null.
  FSDPParam(std::string fqn, std::vector<Owner> owners, const at::Tensor& original,
            const comm::DeviceMesh& mesh, const FullyShardOptions& options,
            std::unique_ptr<ParamExtension> extension);

  const std::string& fqn() const { return fqn_; }
  const std::vector<int64_t>& global_sizes() const { return global_sizes_; }
  int64_t row_begin() const { return rows_.begin; }
  bool requires_grad() const { return requires_grad_; }
  bool is_meta() const { return sharded_buffer_.is_meta(); }
  // The compute device, and the dtype there.
  at::Device device() const { return unsharded_param_.device(); }
  at::ScalarType param_dtype() const { return param_dtype_; }
  const at::Tensor& sharded_param() const { return sharded_param_; }
  const at::Tensor& unsharded_param() const { return unsharded_param_; }
  const ParamExtension* extension() const { return extension_.get(); }
  // True if `parameter` is the original one.
  bool is_original(const at::Tensor& parameter) const;

  // Allocates this parameter for computing on `device`, the sharded buffer zeroed. REQUIRES:
  // is_meta().
  void materialize(const at::Device& device);
  // The sharded parameter has changed in a way that its version counter does not show.
  void mark_changed() { changed_ = true; }
  // It has changed in any way since it was gathered or refreshed last.
  bool is_stale() const;

  // Appends what unsharding gathers: the shard, or the post-forward shard if there is one.
  void append_all_gather_inputs(std::vector<AllGatherInput>& inputs);
  // Where to, one for each of `inputs`, its own; allocates the unsharded storage.
  std::vector<at::Tensor> all_gather_outputs(const AllGatherInput* inputs, size_t num_inputs,
                                             int64_t num_ranks);
  // The outputs are filled.
  void finish_unshard(std::vector<at::Tensor> outputs);
  // Frees the unsharded storage and the post-forward shard.
  void reshard();
  // Frees the unsharded storage but for the part that is `index` of `size`.
  void reshard_post_forward(int64_t index, int64_t size);
  // Unshards where the shard axis has one rank.
  void refresh_if_changed();

  bool has_unsharded_grad() const;
  // Moves the unsharded gradient to the accumulator in `dtype`, where it waits for the next
  // reduction.
  void accumulate_unsharded_grad(at::ScalarType dtype);
  // Accumulated and fresh gradient, which this object then forgets; undefined if there is none.
  at::Tensor take_unsharded_grad();
  // Adds to the sharded parameter's .grad(), or becomes it; then calls the hook. grad: any floating
  // dtype.
  void add_sharded_grad(const at::Tensor& grad);
  void set_post_accumulate_grad_hook(PostAccumulateGradHook hook) { hook_ = std::move(hook); }

 private:
  at::TensorOptions sharded_options(const at::Tensor& like, const at::Device& device) const;
  void set_sharded(at::Tensor buffer);
  void make_unsharded(const at::Device& device);

  std::string fqn_;
  std::vector<Owner> owners_;
  // Held weakly to tell whether another group still has the parameter that became this one.
  c10::weak_intrusive_ptr<c10::TensorImpl> original_;
  std::vector<int64_t> global_sizes_;
  int64_t num_shards_;
  RowRange rows_;
  bool requires_grad_;
  at::ScalarType param_dtype_;
  std::optional<CPUOffloadPolicy> offload_policy_;
  std::unique_ptr<ParamExtension> extension_;

  at::Tensor sharded_buffer_;
  at::Tensor sharded_param_;
  at::Tensor unsharded_buffer_;  // undefined where the unsharded parameter is the sharded one
  at::Tensor unsharded_param_;
  at::Tensor post_forward_shard_;  // undefined but between forward and backward
  at::Tensor accumulated_grad_;    // in reduce_dtype; undefined between optimizer steps
  PostAccumulateGradHook hook_;

  bool changed_ = true;  // since gathered_version_ was read
  int64_t gathered_version_ = 0;
};

}  // namespace narrowgauge::fsdp

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/device_mesh.h"
#include "fsdp/collectives.h"
#include "fsdp/param_extension.h"
#include "nn/layer.h"

namespace narrowgauge::fsdp {

// One parameter of a group. The words used everywhere (FSDP2's "Note: FSDP tensors"):
//
//   original parameter   what the layer held before fully_shard.
//   sharded parameter    this rank's rows of it, original dtype, [rows of this rank, ...]; the leaf
//                        that the optimizer updates and whose .grad() it reads. A view of the
//   sharded buffer       the same padded with zero rows to the size that all ranks have in common,
//                        [padded rows, ...]: the input of the all-gather.
//   unsharded buffer     the output of the all-gather, [ranks * padded rows, ...] in param_dtype.
//   unsharded parameter  the layer's parameter and autograd's leaf: the unsharded buffer without
//                        its padding, [dim 0, ...]. Made once; resharding frees its storage and
//                        unsharding allocates it again under the same tensor, because autograd has
//                        saved aliases of it.
//
// Where the shard axis has one rank nothing is freed: the unsharded parameter is the sharded one
// itself, or its copy in param_dtype, refreshed when the sharded one has changed.
class FSDPParam {
 public:
  // A layer's slot. Not owned: the layer outlives this object, which it holds.
  struct Owner {
    nn::Layer* layer;
    std::string name;
  };

  // fqn: for messages. owners: all slots that hold `original` (more than one when tied); they hold
  // the unsharded parameter from now on. extension: may be null.
  FSDPParam(std::string fqn, std::vector<Owner> owners, const at::Tensor& original,
            const comm::DeviceMesh& mesh, std::optional<at::ScalarType> param_dtype,
            std::unique_ptr<ParamExtension> extension);

  const std::string& fqn() const { return fqn_; }
  const std::vector<int64_t>& global_sizes() const { return global_sizes_; }
  int64_t row_begin() const { return rows_.begin; }
  bool requires_grad() const { return requires_grad_; }
  bool is_meta() const { return sharded_buffer_.is_meta(); }
  const at::Tensor& sharded_param() const { return sharded_param_; }
  const at::Tensor& unsharded_param() const { return unsharded_param_; }
  // True if `parameter` is the original one.
  bool is_original(const at::Tensor& parameter) const;

  // Allocates this parameter on `device`, the sharded buffer zeroed. REQUIRES: is_meta().
  void materialize(const at::Device& device);
  // The sharded parameter has changed in a way that its version counter does not show.
  void mark_changed() { changed_ = true; }

  // The tensors that unsharding gathers, and where to (which allocates them).
  std::vector<at::Tensor> all_gather_inputs();
  std::vector<at::Tensor> all_gather_outputs(const std::vector<at::Tensor>& inputs);
  // The outputs are filled.
  void finish_unshard(std::vector<at::Tensor> outputs);
  // Frees the unsharded storage.
  void reshard();
  // Unshards where the shard axis has one rank.
  void refresh_if_changed();

  bool has_unsharded_grad() const;
  // Moves the unsharded gradient to the accumulator in reduce_dtype, where it waits for the next
  // reduction.
  void accumulate_unsharded_grad(std::optional<at::ScalarType> reduce_dtype);
  // Accumulated and fresh gradient, which this object then forgets; undefined if there is none.
  at::Tensor take_unsharded_grad();
  // Adds to the sharded parameter's .grad(), or becomes it. grad: any floating dtype.
  void add_sharded_grad(const at::Tensor& grad);

 private:
  void set_sharded(at::Tensor buffer);
  void make_unsharded();

  std::string fqn_;
  std::vector<Owner> owners_;
  // Held weakly to tell whether another group still has the parameter that became this one.
  c10::weak_intrusive_ptr<c10::TensorImpl> original_;
  std::vector<int64_t> global_sizes_;
  int64_t num_shards_;
  RowRange rows_;
  bool requires_grad_;
  at::ScalarType param_dtype_;
  std::unique_ptr<ParamExtension> extension_;

  at::Tensor sharded_buffer_;
  at::Tensor sharded_param_;
  at::Tensor unsharded_buffer_;  // undefined where the unsharded parameter is the sharded one
  at::Tensor unsharded_param_;
  at::Tensor accumulated_grad_;  // in reduce_dtype; undefined between optimizer steps

  bool changed_ = true;  // since refreshed_version_ was read
  int64_t refreshed_version_ = 0;
};

}  // namespace narrowgauge::fsdp

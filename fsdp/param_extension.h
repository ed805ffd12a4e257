#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace narrowgauge::fsdp {

// How one parameter travels between its shards, instead of as itself in param_dtype: FP8 weights
// send bytes and scales. The unsharded parameter of the layer is then only an anchor: it has the
// shape and dtype that autograd needs for the gradient and never any storage. The layer computes
// with what post_all_gather received. One object a parameter; called in every unshard.
//
// All methods are called on the thread that runs the model, in the order below. When a group is
// prefetched, time passes between the first two, in which other layers compute and collectives of
// other groups run; when the prefetch turns out useless, the second never comes.
class ParamExtension {
 public:
  virtual ~ParamExtension() = default;

  // padded_shard: [ceil(dim 0 / shard size), ...] in the original dtype on the compute device, rows
  // beyond this rank's are zero. Returns what to gather: any number of tensors of any dtype, with
  // the same shapes on every rank (hence the padding). They are not changed until they are
  // gathered.
  virtual std::vector<at::Tensor> pre_all_gather(const at::Tensor& padded_shard) = 0;

  // outputs: for each returned tensor, [shard size, its shape...] in rank order; owned by this
  // object from now until release.
  virtual void post_all_gather(std::vector<at::Tensor> outputs) = 0;

  // The parameter is resharded: drop the outputs. Never called where the shard axis has one rank;
  // there post_all_gather is called again when the parameter has changed.
  virtual void release() = 0;

  // True if pre_all_gather calls collectives, such as an amax over all shards. It then waits for
  // those under way, since a communicator serves one thread at a time: nothing overlaps. Better is
  // one collective for all parameters after the optimizer's step.
  virtual bool communicates() const { return false; }
};

}  // namespace narrowgauge::fsdp

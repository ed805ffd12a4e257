#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "comm/device_mesh.h"
#include "fsdp/fsdp_module.h"
#include "fsdp/policies.h"
#include "nn/layer.h"

// Fully sharded data parallelism after PyTorch's FSDP2. Bottom-up:
//
//   for (auto& block : model.layers) fully_shard(*block, mesh, options);
//   fully_shard(model, mesh, options);               // what no block has taken
//   materialize(model, at::kCPU, initialize);        // if the model was built on meta
//   AdamW optimizer(sharded_parameters(model));
//
// From then on forward and backward are as ever: gathering and reduction happen in hooks. The
// layers' own parameters are valid only while their layer runs (their storage is freed between);
// what persists are the sharded parameters. Every function below that says so is collective over
// the mesh, and so are forward and backward. README.md in this folder follows one step.
//
// Conversions that replace layers (swap_linear) come before. One thread runs a model.

namespace narrowgauge::fsdp {

// Makes one group of all parameters of `layer` and the layers below it that no earlier call has
// taken. The layer must outlive autograd graphs made with it. Throws c10::Error when the layer is
// sharded already, when a parameter is shared with a layer of another group, or has no dimension.
void fully_shard(nn::Layer& layer, const comm::DeviceMesh& mesh,
                 const FullyShardOptions& options = {});

// One group of the parameters of several layers, such as the last norm and the head. They must run
// in every forward, all or none: the group is gathered before the first and resharded after the
// last that runs. The last one's output must lead to the loss.
void fully_shard(const std::vector<nn::Layer*>& layers, const comm::DeviceMesh& mesh,
                 const FullyShardOptions& options = {});

// Called once per parameter: fills the rows [row_begin, row_begin + shard.size(0)) of parameter
// fqn. shard: [rows of this rank, ...], zeroed, maybe without rows, in the original dtype.
using ShardInitializer =
    std::function<void(const std::string& fqn, at::Tensor shard, int64_t row_begin)>;

// Gives a model that was built on meta its memory, shard by shard: no more than this rank's shards
// is ever filled. device: where the model computes, and where the shards are unless offloaded. In
// model order, a tied parameter once, under its first name. Works on parameters that have memory,
// too, and sets them anew.
void materialize(nn::Layer& root, const at::Device& device, const ShardInitializer& initialize);

// What the optimizer and the checkpoint see of one parameter.
struct ShardedParameter {
  std::string fqn;  // from the root; a tied parameter has its first name
  // [rows of this rank, ...], maybe 0 rows; contiguous, original dtype; a leaf whose .grad() is set
  // after backward (accumulated until reset). Does not require grad if the parameter is frozen.
  at::Tensor local;
  std::vector<int64_t> global_sizes;
  int64_t row_begin = 0;  // of `local` in the whole parameter
};

// All parameters of `root` but ignored ones in model order, tied ones once. Each handle stays valid
// until the next materialize. Throws c10::Error, naming it, if a parameter is not sharded.
std::vector<ShardedParameter> sharded_parameters(nn::Layer& root);

// The whole parameter on every rank, a new tensor [global_sizes] in the original dtype. Collective.
at::Tensor full_parameter(const ShardedParameter& parameter, const comm::DeviceMesh& mesh);

}  // namespace narrowgauge::fsdp

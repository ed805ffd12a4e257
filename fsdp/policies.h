#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "fsdp/param_extension.h"

namespace narrowgauge::nn {
class Layer;
}

namespace narrowgauge::fsdp {

// Applies to floating-point tensors only. A dtype that changes nothing (param_dtype equal to the
// original one, reduce_dtype equal to the gradients') counts as unset.
struct MixedPrecisionPolicy {
  // Of the unsharded parameters, hence of compute and of the all-gather. Unset: the original dtype.
  // Sharded parameters, and the optimizer with them, always keep the original dtype.
  std::optional<c10::ScalarType> param_dtype = std::nullopt;
  // Of the reduction over ranks and of accumulation between micro-batches without one. Unset: the
  // gradients' own dtype, with one reduction for each dtype among the parameters of a group.
  std::optional<c10::ScalarType> reduce_dtype = std::nullopt;
  // Of the layer's output. Unset: as the layer computed it.
  std::optional<c10::ScalarType> output_dtype = std::nullopt;
  // Casts the layer's first input to param_dtype.
  bool cast_forward_inputs = true;
};

// Sharded parameters and their gradients, hence the optimizer, live on the CPU. Parameters travel
// to the compute device before each all-gather, gradients back after each reduction.
struct CPUOffloadPolicy {
  // In page-locked memory, which the device copies from and to without the CPU, while both compute.
  // Costs memory that cannot be swapped out. No effect where the compute device is the CPU.
  bool pin_memory = true;
};

// What forward does with the parameters it has gathered.
//   true   frees them; backward gathers them again
//   false  keeps them
//   n      keeps 1/n of them: what n neighbours of the shard axis hold is then one copy, and
//          backward gathers among these alone (ZeRO++'s hpZ). n divides the shard axis; 1 is false,
//          the whole axis is true. Not with a ParamExtension.
using ReshardAfterForward = std::variant<bool, int>;

// Returns null for a parameter that travels as itself.
using ParamExtensionFactory = std::function<std::unique_ptr<ParamExtension>(
    nn::Layer& owner, const std::string& parameter_name)>;

struct FullyShardOptions {
  MixedPrecisionPolicy mp_policy = {};
  std::optional<CPUOffloadPolicy> offload_policy = std::nullopt;
  // Unset: true, but false for the root, whose backward follows at once. A forward
  // without gradients always frees.
  std::optional<ReshardAfterForward> reshard_after_forward = std::nullopt;
  // Gradients are summed over all ranks and divided by this. 1 suits a loss that is already divided
  // by the global number of tokens; the number of ranks gives the mean over ranks, which is
  // FSDP2's default. A float16 reduction divides in part before it sums, by a power of two about
  // the square root of the factor, so that neither sum nor summands leave the range.
  double gradient_divide_factor = 1.0;
  ParamExtensionFactory make_extension = nullptr;
  // Parameters to leave alone: neither sharded nor gathered nor reduced, and no part of
  // sharded_parameters. The caller gives them memory, if they are on meta, and equal values.
  std::vector<at::Tensor> ignored_params = {};
};

}  // namespace narrowgauge::fsdp

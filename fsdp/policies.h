#pragma once

#include <c10/core/ScalarType.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "fsdp/param_extension.h"

namespace narrowgauge::nn {
class Layer;
}

namespace narrowgauge::fsdp {

// Applies to floating-point tensors only.
struct MixedPrecisionPolicy {
  // Of the unsharded parameters, hence of compute and of the all-gather. Unset: the original dtype.
  // Sharded parameters, and the optimizer with them, always keep the original dtype.
  std::optional<c10::ScalarType> param_dtype = std::nullopt;
  // Of the reduction over ranks and of accumulation between micro-batches without one. Unset: the
  // gradients' own dtype.
  std::optional<c10::ScalarType> reduce_dtype = std::nullopt;
  // Of the layer's output. Unset: as the layer computed it.
  std::optional<c10::ScalarType> output_dtype = std::nullopt;
  // Casts the layer's first input to param_dtype.
  bool cast_forward_inputs = true;
};

// Returns null for a parameter that travels as itself.
using ParamExtensionFactory = std::function<std::unique_ptr<ParamExtension>(
    nn::Layer& owner, const std::string& parameter_name)>;

struct FullyShardOptions {
  MixedPrecisionPolicy mp_policy = {};
  // Frees the unsharded parameters after forward and gathers them again in backward. Unset: true,
  // but false for the root, whose backward follows at once. Without gradients it is always true.
  std::optional<bool> reshard_after_forward = std::nullopt;
  // Gradients are summed over all ranks and divided by this. 1 suits a loss that is already divided
  // by the global number of tokens; the number of ranks gives the mean over ranks.
  double gradient_divide_factor = 1.0;
  ParamExtensionFactory make_extension = nullptr;
};

}  // namespace narrowgauge::fsdp

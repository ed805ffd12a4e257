#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "nn/transformer_config.h"

namespace narrowgauge::nn {

// Fills rows [row_begin, row_begin + shard.size(0)) of parameter `fqn` of a new Transformer: norms
// 1, biases 0, weights normal(0, initializer_range), those that write into the residual stream
// (o_proj, down_proj) divided by sqrt(2 num_layers) (GPT-2). A value depends on (seed, fqn,
// position) alone, so the model is the same at any world size. shard: [rows, ...] contiguous
// floating point.
void initialize_parameter(const TransformerConfig& config, uint64_t seed, const std::string& fqn,
                          const at::Tensor& shard, int64_t row_begin);

}  // namespace narrowgauge::nn

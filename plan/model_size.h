#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nn/transformer_config.h"

// Parameters and floating-point operations of a decoder, counted from its shape.

namespace narrowgauge::plan {

// One parameter [rows, row_numel]; a vector is [rows, 1]. Sharding cuts rows.
struct ParameterSize {
  std::string name;  // within its group
  int64_t rows = 0;
  int64_t row_numel = 1;
  bool is_block_linear = false;  // the weight of a matrix product that float8 may take over

  int64_t numel() const { return rows * row_numel; }
};

// Of one block; and of what is in no block: embedding, last norm, head (absent when tied).
std::vector<ParameterSize> block_parameters(const nn::TransformerConfig& config);
std::vector<ParameterSize> root_parameters(const nn::TransformerConfig& config);

int64_t total_numel(const std::vector<ParameterSize>& parameters);
// Elements that one of `num_shards` ranks stores: every parameter cut along its rows into chunks of
// ceil(rows / num_shards), each rank padded to a whole chunk (as fsdp/fsdp_param.cc).
int64_t sharded_numel(const std::vector<ParameterSize>& parameters, int64_t num_shards);

int64_t model_numel(const nn::TransformerConfig& config);

// Why float8 leaves a linear layer of these sizes in its compute dtype; empty where it takes it.
// Products in FP8 need both sizes divisible by 16.
std::string float8_refusal(int64_t in_features, int64_t out_features);

// Floating-point operations of one token's forward pass; a multiply-add counts as two. Backward
// takes twice as many.
struct ForwardFlops {
  double block_linears = 0;  // those that float8 may take over
  double other_linears = 0;  // those with sizes that FP8 does not take
  double head = 0;           // tied or not
  double attention = 0;      // both products, causal: half of seq_len keys on average

  double total() const { return block_linears + other_linears + head + attention; }
};

ForwardFlops forward_flops(const nn::TransformerConfig& config, int64_t seq_len);

}  // namespace narrowgauge::plan

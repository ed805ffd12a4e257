#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nn/transformer_config.h"

// Note: names and fused projections
//
// Our model fuses q, k and v into qkv_proj and gate and up into gate_up_proj; Hugging Face keeps
// them apart. Both store [out, in], so fusing is stacking rows, in the order q, k, v and gate, up:
// a range of our rows is at most three ranges of theirs, and a rank reads or writes only its own.
// Rotary embedding is half-split on both sides: rows keep their order.

namespace narrowgauge::checkpoint {

struct ParameterSpec {
  std::string name;  // ours: layers.3.self_attn.qkv_proj.weight
  std::vector<int64_t> sizes;
};

// One Hugging Face tensor, and the rows [row_begin, row_end) of our parameter that it holds.
struct HuggingFacePiece {
  std::string name;  // model.layers.3.self_attn.k_proj.weight
  std::vector<int64_t> sizes;
  int64_t row_begin = 0;
  int64_t row_end = 0;
};

// Every parameter of the model, in the order of the forward pass; lm_head.weight only when untied.
std::vector<ParameterSpec> parameter_specs(const nn::TransformerConfig& config);

// The tensors that together hold `parameter`, by rising row. Throws std::invalid_argument for an
// axis-0 size that does not match `config`.
std::vector<HuggingFacePiece> huggingface_pieces(const nn::TransformerConfig& config,
                                                 const ParameterSpec& parameter);

}  // namespace narrowgauge::checkpoint

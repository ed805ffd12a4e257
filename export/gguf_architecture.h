#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "export/gguf_header.h"
#include "nn/transformer_config.h"

// Note: rows of q and k
//
// llama.cpp rotates neighbouring pairs (2i, 2i + 1) of a head for the architecture "llama" and the
// halves (i, i + head_dim / 2) for the Qwens. Our rotation, as Hugging Face's, is of halves, so
// for "llama" (Mistral included) the rows of q_proj and k_proj are written in the order that makes
// neighbours of halves. Blocks and scales run along columns: they move with their rows, unchanged.

namespace narrowgauge::exports {

// llama.cpp's name of a Hugging Face tensor: model.layers.3.self_attn.q_proj.weight is
// blk.3.attn_q.weight. Throws std::invalid_argument for a name it has none for.
std::string gguf_tensor_name(const std::string& huggingface_name);

// For each row of the file, the row of the Hugging Face tensor that stands there; empty where all
// keep their places.
std::vector<int64_t> gguf_row_order(const nn::TransformerConfig& config,
                                    const std::string& huggingface_name);

// The keys of a model's shape, under general.* and the architecture's name.
GgufMetadata gguf_architecture_metadata(const nn::TransformerConfig& config);

// With llama3 rotary scaling, what llama.cpp divides each frequency by (head_dim / 2 values for its
// tensor rope_freqs.weight); else empty.
std::vector<float> gguf_rope_factors(const nn::TransformerConfig& config);

}  // namespace narrowgauge::exports

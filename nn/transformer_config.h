#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace narrowgauge::nn {

// Shape of a Llama-family decoder. Field names are torchtitan's; the Hugging Face key is beside
// each.
struct TransformerConfig {
  std::string architecture = "llama";  // model_type: llama | mistral | qwen2 | qwen3
  int64_t vocab_size = 0;              // vocab_size
  int64_t dim = 0;                     // hidden_size
  int64_t num_layers = 0;              // num_hidden_layers
  int64_t num_heads = 0;               // num_attention_heads
  int64_t num_kv_heads = 0;            // num_key_value_heads; divides num_heads
  int64_t head_dim = 0;                // head_dim; dim / num_heads where the file has none
  int64_t ffn_dim = 0;                 // intermediate_size
  int64_t max_seq_len = 2048;          // max_position_embeddings
  double norm_eps = 1e-5;              // rms_norm_eps
  double initializer_range = 0.02;     // initializer_range
  bool tie_word_embeddings = false;    // tie_word_embeddings
  bool attention_bias = false;         // bias of q, k, v (qwen2: always true)
  bool attention_output_bias = false;  // bias of o (llama's attention_bias sets both)
  bool mlp_bias = false;               // mlp_bias
  bool qk_norm = false;                // qwen3: RMSNorm of each head's q and k before RoPE

  double rope_theta = 10000.0;  // rope_theta
  // rope_scaling: none | linear | llama3
  std::string rope_scaling = "none";
  double rope_factor = 1.0;
  double rope_low_freq_factor = 1.0;
  double rope_high_freq_factor = 4.0;
  int64_t rope_original_max_seq_len = 8192;
};

}  // namespace narrowgauge::nn

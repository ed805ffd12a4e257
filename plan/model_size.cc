#include "plan/model_size.h"

namespace narrowgauge::plan {
namespace {

constexpr int64_t kFloat8Multiple = 16;

void add_linear(std::vector<ParameterSize>& all, const std::string& name, int64_t in, int64_t out,
                bool bias) {
  all.push_back({name + ".weight", out, in, true});
  if (bias) {
    all.push_back({name + ".bias", out});
  }
}

}  // namespace

std::vector<ParameterSize> block_parameters(const nn::TransformerConfig& config) {
  const int64_t q = config.num_heads * config.head_dim;
  const int64_t kv = config.num_kv_heads * config.head_dim;
  std::vector<ParameterSize> all = {{"input_layernorm.weight", config.dim}};
  add_linear(all, "self_attn.qkv_proj", config.dim, q + 2 * kv, config.attention_bias);
  if (config.qk_norm) {
    all.push_back({"self_attn.q_norm.weight", config.head_dim});
    all.push_back({"self_attn.k_norm.weight", config.head_dim});
  }
  add_linear(all, "self_attn.o_proj", q, config.dim, config.attention_output_bias);
  all.push_back({"post_attention_layernorm.weight", config.dim});
  add_linear(all, "mlp.gate_up_proj", config.dim, 2 * config.ffn_dim, config.mlp_bias);
  add_linear(all, "mlp.down_proj", config.ffn_dim, config.dim, config.mlp_bias);
  return all;
}

std::vector<ParameterSize> root_parameters(const nn::TransformerConfig& config) {
  std::vector<ParameterSize> all = {{"embed_tokens.weight", config.vocab_size, config.dim},
                                    {"norm.weight", config.dim}};
  if (!config.tie_word_embeddings) {
    all.push_back({"lm_head.weight", config.vocab_size, config.dim});
  }
  return all;
}

int64_t total_numel(const std::vector<ParameterSize>& parameters) {
  return sharded_numel(parameters, 1);
}

int64_t sharded_numel(const std::vector<ParameterSize>& parameters, int64_t num_shards) {
  int64_t sum = 0;
  for (const ParameterSize& parameter : parameters) {
    sum += (parameter.rows + num_shards - 1) / num_shards * parameter.row_numel;
  }
  return sum;
}

int64_t model_numel(const nn::TransformerConfig& config) {
  return config.num_layers * total_numel(block_parameters(config)) +
         total_numel(root_parameters(config));
}

std::string float8_refusal(int64_t in_features, int64_t out_features) {
  for (const int64_t size : {in_features, out_features}) {
    if (size % kFloat8Multiple != 0) {
      return std::to_string(size) + " is no multiple of 16";
    }
  }
  return "";
}

ForwardFlops forward_flops(const nn::TransformerConfig& config, int64_t seq_len) {
  const auto layers = static_cast<double>(config.num_layers);
  ForwardFlops flops;
  for (const ParameterSize& parameter : block_parameters(config)) {
    if (parameter.is_block_linear) {
      const bool fits = float8_refusal(parameter.row_numel, parameter.rows).empty();
      (fits ? flops.block_linears : flops.other_linears) +=
          2 * layers * static_cast<double>(parameter.numel());
    }
  }
  flops.head = 2 * static_cast<double>(config.dim) * static_cast<double>(config.vocab_size);
  // q k^T and p v: 2 products x 2 operations x seq_len / 2 keys x num_heads * head_dim.
  flops.attention = 2 * layers * static_cast<double>(config.num_heads * config.head_dim) *
                    static_cast<double>(seq_len);
  return flops;
}

}  // namespace narrowgauge::plan

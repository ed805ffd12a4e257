#include "checkpoint/huggingface_names.h"

#include <stdexcept>
#include <string_view>
#include <utility>

namespace narrowgauge::checkpoint {
namespace {

void append_linear(std::vector<ParameterSpec>& specs, const std::string& name, int64_t out,
                   int64_t in, bool bias) {
  specs.push_back({name + ".weight", {out, in}});
  if (bias) {
    specs.push_back({name + ".bias", {out}});
  }
}

void append_layer(std::vector<ParameterSpec>& specs, const nn::TransformerConfig& config,
                  int64_t layer) {
  const std::string prefix = "layers." + std::to_string(layer) + ".";
  const int64_t q_rows = config.num_heads * config.head_dim;
  const int64_t kv_rows = config.num_kv_heads * config.head_dim;
  specs.push_back({prefix + "input_layernorm.weight", {config.dim}});
  append_linear(specs, prefix + "self_attn.qkv_proj", q_rows + 2 * kv_rows, config.dim,
                config.attention_bias);
  if (config.qk_norm) {
    specs.push_back({prefix + "self_attn.q_norm.weight", {config.head_dim}});
    specs.push_back({prefix + "self_attn.k_norm.weight", {config.head_dim}});
  }
  append_linear(specs, prefix + "self_attn.o_proj", config.dim, q_rows,
                config.attention_output_bias);
  specs.push_back({prefix + "post_attention_layernorm.weight", {config.dim}});
  append_linear(specs, prefix + "mlp.gate_up_proj", 2 * config.ffn_dim, config.dim,
                config.mlp_bias);
  append_linear(specs, prefix + "mlp.down_proj", config.dim, config.ffn_dim, config.mlp_bias);
}

// The parts of a fused projection and their rows; {} for any other parameter.
std::vector<std::pair<std::string, int64_t>> fused_parts(const nn::TransformerConfig& config,
                                                         std::string_view projection) {
  const int64_t kv_rows = config.num_kv_heads * config.head_dim;
  if (projection == "qkv_proj") {
    return {
        {"q_proj", config.num_heads * config.head_dim}, {"k_proj", kv_rows}, {"v_proj", kv_rows}};
  }
  if (projection == "gate_up_proj") {
    return {{"gate_proj", config.ffn_dim}, {"up_proj", config.ffn_dim}};
  }
  return {};
}

std::string huggingface_name(const std::string& name) {
  return name == "lm_head.weight" ? name : "model." + name;
}

}  // namespace

std::vector<ParameterSpec> parameter_specs(const nn::TransformerConfig& config) {
  std::vector<ParameterSpec> specs;
  specs.push_back({"embed_tokens.weight", {config.vocab_size, config.dim}});
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    append_layer(specs, config, layer);
  }
  specs.push_back({"norm.weight", {config.dim}});
  if (!config.tie_word_embeddings) {
    specs.push_back({"lm_head.weight", {config.vocab_size, config.dim}});
  }
  return specs;
}

std::vector<HuggingFacePiece> huggingface_pieces(const nn::TransformerConfig& config,
                                                 const ParameterSpec& parameter) {
  const size_t leaf = parameter.name.rfind('.');
  const size_t middle = leaf == 0 ? std::string::npos : parameter.name.rfind('.', leaf - 1);
  const int64_t num_rows = parameter.sizes.at(0);
  if (leaf == std::string::npos || middle == std::string::npos) {
    return {{huggingface_name(parameter.name), parameter.sizes, 0, num_rows}};
  }
  const std::string projection = parameter.name.substr(middle + 1, leaf - middle - 1);
  const auto parts = fused_parts(config, projection);
  if (parts.empty()) {
    return {{huggingface_name(parameter.name), parameter.sizes, 0, num_rows}};
  }
  const std::string prefix = huggingface_name(parameter.name.substr(0, middle + 1));
  std::vector<HuggingFacePiece> pieces;
  int64_t row = 0;
  for (const auto& [part, part_rows] : parts) {
    std::vector<int64_t> sizes = parameter.sizes;
    sizes[0] = part_rows;
    pieces.push_back(
        {prefix + part + parameter.name.substr(leaf), std::move(sizes), row, row + part_rows});
    row += part_rows;
  }
  if (row != num_rows) {
    throw std::invalid_argument(parameter.name + ": expected " + std::to_string(row) +
                                " rows for this config, got " + std::to_string(num_rows));
  }
  return pieces;
}

}  // namespace narrowgauge::checkpoint

// Names, keys and the order of rows: llama.cpp's conversion scripts and src/llama-arch.cpp.
#include "export/gguf_architecture.h"

#include <cmath>
#include <map>
#include <numbers>
#include <stdexcept>

namespace narrowgauge::exports {
namespace {

// Mistral is llama.cpp's llama.
std::string gguf_architecture(const nn::TransformerConfig& config) {
  return config.architecture == "mistral" ? "llama" : config.architecture;
}

bool rotates_neighbours(const nn::TransformerConfig& config) {
  return gguf_architecture(config) == "llama";
}

bool has_suffix(const std::string& name, const char* module) {
  return name.ends_with(std::string(module) + ".weight") ||
         name.ends_with(std::string(module) + ".bias");
}

uint32_t to_u32(int64_t value, const char* what) {
  if (value < 0 || value > int64_t{UINT32_MAX}) {
    throw std::invalid_argument(std::string("expected ") + what + " within 32 bits, got " +
                                std::to_string(value));
  }
  return static_cast<uint32_t>(value);
}

}  // namespace

std::string gguf_tensor_name(const std::string& huggingface_name) {
  static const std::map<std::string, std::string> kWhole = {
      {"model.embed_tokens.weight", "token_embd.weight"},
      {"model.norm.weight", "output_norm.weight"},
      {"lm_head.weight", "output.weight"},
  };
  static const std::map<std::string, std::string> kOfBlock = {
      {"input_layernorm", "attn_norm"},    {"self_attn.q_proj", "attn_q"},
      {"self_attn.k_proj", "attn_k"},      {"self_attn.v_proj", "attn_v"},
      {"self_attn.o_proj", "attn_output"}, {"self_attn.q_norm", "attn_q_norm"},
      {"self_attn.k_norm", "attn_k_norm"}, {"post_attention_layernorm", "ffn_norm"},
      {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"},
  };
  if (const auto found = kWhole.find(huggingface_name); found != kWhole.end()) {
    return found->second;
  }
  const std::string prefix = "model.layers.";
  const size_t dot = huggingface_name.find('.', prefix.size());
  const size_t leaf = huggingface_name.rfind('.');
  if (huggingface_name.starts_with(prefix) && dot != std::string::npos && leaf > dot) {
    const auto found = kOfBlock.find(huggingface_name.substr(dot + 1, leaf - dot - 1));
    if (found != kOfBlock.end()) {
      return "blk." + huggingface_name.substr(prefix.size(), dot - prefix.size()) + "." +
             found->second + huggingface_name.substr(leaf);
    }
  }
  throw std::invalid_argument("GGUF has no name for the tensor '" + huggingface_name + "'");
}

std::vector<int64_t> gguf_row_order(const nn::TransformerConfig& config,
                                    const std::string& huggingface_name) {
  const bool is_q = has_suffix(huggingface_name, "self_attn.q_proj");
  const bool is_k = has_suffix(huggingface_name, "self_attn.k_proj");
  if (!rotates_neighbours(config) || (!is_q && !is_k)) {
    return {};
  }
  const int64_t half = config.head_dim / 2;
  std::vector<int64_t> order;
  for (int64_t head = 0; head < (is_q ? config.num_heads : config.num_kv_heads); ++head) {
    for (int64_t i = 0; i < half; ++i) {
      order.push_back(head * config.head_dim + i);
      order.push_back(head * config.head_dim + half + i);
    }
  }
  return order;
}

GgufMetadata gguf_architecture_metadata(const nn::TransformerConfig& config) {
  const std::string arch = gguf_architecture(config);
  if (config.attention_output_bias || config.mlp_bias) {
    throw std::invalid_argument(
        "GGUF export: llama.cpp has no biases of o_proj and the feed-forward for " + arch +
        "; choose another format");
  }
  const auto u32 = [](int64_t value, const char* what) { return to_u32(value, what); };
  GgufMetadata metadata = {
      {"general.architecture", arch},
      {"general.type", std::string("model")},
      {"general.quantization_version", uint32_t{2}},
      {arch + ".vocab_size", u32(config.vocab_size, "vocab_size")},
      {arch + ".context_length", u32(config.max_seq_len, "max_seq_len")},
      {arch + ".embedding_length", u32(config.dim, "dim")},
      {arch + ".block_count", u32(config.num_layers, "num_layers")},
      {arch + ".feed_forward_length", u32(config.ffn_dim, "ffn_dim")},
      {arch + ".attention.head_count", u32(config.num_heads, "num_heads")},
      {arch + ".attention.head_count_kv", u32(config.num_kv_heads, "num_kv_heads")},
      {arch + ".attention.key_length", u32(config.head_dim, "head_dim")},
      {arch + ".attention.value_length", u32(config.head_dim, "head_dim")},
      {arch + ".attention.layer_norm_rms_epsilon", static_cast<float>(config.norm_eps)},
      {arch + ".rope.dimension_count", u32(config.head_dim, "head_dim")},
      {arch + ".rope.freq_base", static_cast<float>(config.rope_theta)},
  };
  if (config.rope_scaling == "linear") {
    metadata.emplace_back(arch + ".rope.scaling.type", std::string("linear"));
    metadata.emplace_back(arch + ".rope.scaling.factor", static_cast<float>(config.rope_factor));
  } else if (config.rope_scaling != "none" && config.rope_scaling != "llama3") {
    throw std::invalid_argument("GGUF export: expected rope_scaling none, linear or llama3, got " +
                                config.rope_scaling);
  }
  return metadata;
}

std::vector<float> gguf_rope_factors(const nn::TransformerConfig& config) {
  if (config.rope_scaling != "llama3") {
    return {};
  }
  const auto original = static_cast<double>(config.rope_original_max_seq_len);
  const double low_wavelength = original / config.rope_low_freq_factor;
  const double high_wavelength = original / config.rope_high_freq_factor;
  std::vector<float> factors;
  for (int64_t i = 0; i < config.head_dim; i += 2) {
    const double exponent = static_cast<double>(i) / static_cast<double>(config.head_dim);
    const double wavelength = 2 * std::numbers::pi * std::pow(config.rope_theta, exponent);
    if (wavelength < high_wavelength) {
      factors.push_back(1.0F);
    } else if (wavelength > low_wavelength) {
      factors.push_back(static_cast<float>(config.rope_factor));
    } else {
      const double smooth = (original / wavelength - config.rope_low_freq_factor) /
                            (config.rope_high_freq_factor - config.rope_low_freq_factor);
      factors.push_back(static_cast<float>(1.0 / ((1.0 - smooth) / config.rope_factor + smooth)));
    }
  }
  return factors;
}

}  // namespace narrowgauge::exports

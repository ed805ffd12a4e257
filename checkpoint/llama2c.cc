// The format (llama2.c export.py, legacy_export; run.c, memory_map_weights), little-endian:
//   7 int32: dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size (< 0: untied head), seq_len
//   fp32, each tensor over all layers: token_embedding, rms_att, wq, wk, wv, wo, rms_ffn, w1
//   (gate), w2 (down), w3 (up); then rms_final, freq_cis_real and freq_cis_imag [seq_len, head_dim
//   / 2] (unused), and the classifier when untied.
// Rotary embedding turns neighbouring rows (2i, 2i+1) of a head there, rows i and i + head_dim/2
// here, so the rows of q and k are permuted.
#include "checkpoint/llama2c.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <stdexcept>

#include "checkpoint/huggingface_names.h"

namespace narrowgauge::checkpoint {
namespace {

static_assert(std::endian::native == std::endian::little, "llama2.c files are little-endian");

constexpr int64_t kHeaderBytes = 7 * sizeof(int32_t);
constexpr int32_t kVersionedMagic = 0x616b3432;  // "ak42": export.py versions 1 and later

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& what) {
  throw std::runtime_error(path.string() + ": " + what);
}

nn::TransformerConfig parse_header(const std::array<int32_t, 7>& header,
                                   const std::filesystem::path& path) {
  if (header[0] == kVersionedMagic) {
    fail(path,
         "expected llama2.c's legacy format, got a versioned export; re-export with "
         "--version 0");
  }
  const auto [dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len] = header;
  const int64_t num_tokens = std::abs(int64_t{vocab_size});
  const bool is_positive = dim > 0 && hidden_dim > 0 && n_layers > 0 && n_heads > 0 &&
                           n_kv_heads > 0 && num_tokens > 0 && seq_len > 0;
  // Keeps every product below 2^63.
  const bool is_sane = dim < (1 << 20) && hidden_dim < (1 << 20) && n_layers < (1 << 12) &&
                       num_tokens < (1 << 24) && seq_len < (1 << 24);
  if (!is_positive || !is_sane || dim % n_heads != 0 || n_heads % n_kv_heads != 0 ||
      dim / n_heads % 2 != 0) {
    std::string values;
    for (const int32_t value : header) {
      values += " " + std::to_string(value);
    }
    fail(path,
         "expected dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len of a "
         "Llama, got" +
             values + "; not a llama2.c model or damaged");
  }
  nn::TransformerConfig config;
  config.vocab_size = num_tokens;
  config.dim = dim;
  config.num_layers = n_layers;
  config.num_heads = n_heads;
  config.num_kv_heads = n_kv_heads;
  config.head_dim = dim / n_heads;
  config.ffn_dim = hidden_dim;
  config.max_seq_len = seq_len;
  config.norm_eps = 1e-5;
  config.rope_theta = 10000.0;
  config.tie_word_embeddings = vocab_size > 0;
  return config;
}

int64_t num_floats(const nn::TransformerConfig& config) {
  int64_t total = config.max_seq_len * config.head_dim;  // both freq_cis tables
  for (const ParameterSpec& spec : parameter_specs(config)) {
    total += c10::multiply_integers(spec.sizes);
  }
  return total;
}

// [heads * (head_dim/2, 2), in] -> [heads * (2, head_dim/2), in]
at::Tensor to_half_split(const at::Tensor& rows, int64_t head_dim) {
  const int64_t num_heads = rows.size(0) / head_dim;
  return rows.view({num_heads, head_dim / 2, 2, rows.size(1)})
      .transpose(1, 2)
      .reshape({rows.size(0), rows.size(1)});
}

// Takes one tensor after another from a flat one.
class Cursor {
 public:
  explicit Cursor(at::Tensor flat) : flat_(std::move(flat)) {}

  at::Tensor take(const std::vector<int64_t>& sizes) {
    const int64_t numel = c10::multiply_integers(sizes);
    offset_ += numel;
    return flat_.narrow(0, offset_ - numel, numel).view(sizes);
  }

 private:
  at::Tensor flat_;
  int64_t offset_ = 0;
};

std::map<std::string, at::Tensor> split_weights(const at::Tensor& flat,
                                                const nn::TransformerConfig& config) {
  const int64_t layers = config.num_layers;
  const int64_t dim = config.dim;
  const int64_t kv_rows = config.num_kv_heads * config.head_dim;
  Cursor cursor(flat);
  std::map<std::string, at::Tensor> parameters;
  parameters["embed_tokens.weight"] = cursor.take({config.vocab_size, dim});
  const at::Tensor rms_att = cursor.take({layers, dim});
  const at::Tensor wq = cursor.take({layers, dim, dim});
  const at::Tensor wk = cursor.take({layers, kv_rows, dim});
  const at::Tensor wv = cursor.take({layers, kv_rows, dim});
  const at::Tensor wo = cursor.take({layers, dim, dim});
  const at::Tensor rms_ffn = cursor.take({layers, dim});
  const at::Tensor gate = cursor.take({layers, config.ffn_dim, dim});
  const at::Tensor down = cursor.take({layers, dim, config.ffn_dim});
  const at::Tensor up = cursor.take({layers, config.ffn_dim, dim});
  for (int64_t i = 0; i < layers; ++i) {
    const std::string prefix = "layers." + std::to_string(i) + ".";
    parameters[prefix + "input_layernorm.weight"] = rms_att[i];
    parameters[prefix + "self_attn.qkv_proj.weight"] = at::cat(
        {to_half_split(wq[i], config.head_dim), to_half_split(wk[i], config.head_dim), wv[i]});
    parameters[prefix + "self_attn.o_proj.weight"] = wo[i];
    parameters[prefix + "post_attention_layernorm.weight"] = rms_ffn[i];
    parameters[prefix + "mlp.gate_up_proj.weight"] = at::cat({gate[i], up[i]});
    parameters[prefix + "mlp.down_proj.weight"] = down[i];
  }
  parameters["norm.weight"] = cursor.take({dim});
  cursor.take({2, config.max_seq_len, config.head_dim / 2});
  if (!config.tie_word_embeddings) {
    parameters["lm_head.weight"] = cursor.take({config.vocab_size, dim});
  }
  return parameters;
}

}  // namespace

Llama2cModel read_llama2c(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  std::array<int32_t, 7> header = {};
  stream.read(reinterpret_cast<char*>(header.data()), kHeaderBytes);
  if (!stream) {
    fail(path, "expected a llama2.c model of at least " + std::to_string(kHeaderBytes) +
                   " bytes, could read " + std::to_string(stream.gcount()));
  }
  Llama2cModel model;
  model.config = parse_header(header, path);
  const int64_t numel = num_floats(model.config);
  const int64_t expected = kHeaderBytes + numel * static_cast<int64_t>(sizeof(float));
  const auto actual = static_cast<int64_t>(std::filesystem::file_size(path));
  if (actual != expected) {
    fail(path, "expected " + std::to_string(expected) + " bytes for its header, got " +
                   std::to_string(actual) + "; truncated, or not a llama2.c model");
  }
  const at::Tensor flat = at::empty({numel}, at::kFloat);
  stream.read(static_cast<char*>(flat.mutable_data_ptr()), expected - kHeaderBytes);
  if (!stream) {
    fail(path, "could read only " + std::to_string(stream.gcount()) + " of " +
                   std::to_string(expected - kHeaderBytes) + " bytes of weights");
  }
  model.parameters = split_weights(flat, model.config);
  return model;
}

}  // namespace narrowgauge::checkpoint

#include "checkpoint/huggingface_config.h"

#include <map>
#include <stdexcept>

#include "checkpoint/durable_file.h"
#include "checkpoint/strict_json.h"

namespace narrowgauge::checkpoint {
namespace {

using nlohmann::json;

constexpr int64_t kMaxConfigBytes = 16 << 20;
// A lying file must neither overflow a product of sizes nor allocate a name a layer without end.
constexpr int64_t kMaxSize = int64_t{1} << 24;
constexpr int64_t kMaxLayers = 4096;

// One architecture of transformers: what its config class fixes or assumes.
struct Architecture {
  const char* class_name;
  int64_t max_position_embeddings;          // default of the config class, as the two below
  std::optional<int64_t> default_head_dim;  // otherwise hidden_size / num_attention_heads
  bool kv_heads_default_to_heads;
  bool attention_bias_key;  // attention_bias sets q, k, v and o
  bool qkv_bias;            // q, k and v always have one
  bool qk_norm;
  bool mlp_bias_key;
};

const std::map<std::string, Architecture>& architectures() {
  static const std::map<std::string, Architecture> kArchitectures = {
      {"llama", {"LlamaForCausalLM", 2048, {}, true, true, false, false, true}},
      {"mistral", {"MistralForCausalLM", 131072, {}, false, false, false, false, false}},
      {"qwen2", {"Qwen2ForCausalLM", 32768, {}, false, false, true, false, false}},
      {"qwen3", {"Qwen3ForCausalLM", 32768, 128, false, true, false, true, false}},
  };
  return kArchitectures;
}

std::string supported_architectures() {
  std::string names;
  for (const auto& [name, architecture] : architectures()) {
    names += (names.empty() ? "" : ", ") + name;
  }
  return names;
}

// Typed access that treats null as absent, as transformers does.
class Keys {
 public:
  Keys(const json& object, std::string source) : object_(object), source_(std::move(source)) {}

  bool has(const char* key) const {
    const auto found = object_.find(key);
    return found != object_.end() && !found->is_null();
  }
  bool is_null(const char* key) const { return object_.contains(key) && object_[key].is_null(); }
  template <typename T>
  T required(const char* key) const {
    return json_value<T>(object_, key, source_);
  }
  template <typename T>
  T value_or(const char* key, T otherwise) const {
    return has(key) ? required<T>(key) : otherwise;
  }
  int64_t positive(const char* key, int64_t largest = kMaxSize) const {
    const int64_t value = required<int64_t>(key);
    if (value < 1 || value > largest) {
      fail("expected '" + std::string(key) + "' from 1 to " + std::to_string(largest) + ", got " +
           std::to_string(value));
    }
    return value;
  }
  int64_t positive_or(const char* key, int64_t otherwise) const {
    return has(key) ? positive(key) : otherwise;
  }
  const json& operator[](const char* key) const { return object_.at(key); }
  const std::string& source() const { return source_; }
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(source_ + ": " + what);
  }

 private:
  const json& object_;
  std::string source_;
};

std::string quoted(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

void check_rope(const Keys& keys, const nn::TransformerConfig& config) {
  const bool valid = config.rope_theta > 0 && config.rope_factor > 0 &&
                     config.rope_low_freq_factor > 0 && config.rope_high_freq_factor > 0;
  if (!valid) {
    keys.fail("expected rope_theta and all rotary factors above 0");
  }
  if (config.rope_scaling == "llama3" &&
      config.rope_high_freq_factor <= config.rope_low_freq_factor) {
    keys.fail("expected rotary high_freq_factor above low_freq_factor " +
              std::to_string(config.rope_low_freq_factor) + ", got " +
              std::to_string(config.rope_high_freq_factor));
  }
}

// transformers 5 moved rope_theta into the scaling dictionary and renamed that; a non-null
// rope_scaling wins there too.
void read_rope(const Keys& keys, nn::TransformerConfig& config) {
  config.rope_theta = keys.value_or<double>("rope_theta", config.rope_theta);
  const char* name = keys.has("rope_scaling") ? "rope_scaling" : "rope_parameters";
  if (keys.has(name)) {
    if (!keys[name].is_object()) {
      keys.fail("expected '" + std::string(name) + "' to be an object, got " + quoted(keys[name]));
    }
    const Keys rope(keys[name], keys.source() + ": " + name);
    config.rope_theta = rope.value_or<double>("rope_theta", config.rope_theta);
    const std::string type =
        rope.value_or<std::string>("rope_type", rope.value_or<std::string>("type", "default"));
    if (type != "default" && type != "linear" && type != "llama3") {
      rope.fail("rotary scaling '" + type +
                "' is not supported; supported: default, linear, llama3");
    }
    config.rope_scaling = type == "default" ? "none" : type;
    if (type != "default") {
      config.rope_factor = rope.required<double>("factor");
    }
    if (type == "llama3") {
      config.rope_low_freq_factor = rope.required<double>("low_freq_factor");
      config.rope_high_freq_factor = rope.required<double>("high_freq_factor");
      config.rope_original_max_seq_len = rope.positive("original_max_position_embeddings");
    }
    if (rope.value_or<double>("partial_rotary_factor", 1.0) != 1.0) {
      rope.fail("partial_rotary_factor other than 1 is not supported");
    }
  }
  if (keys.value_or<double>("partial_rotary_factor", 1.0) != 1.0) {
    keys.fail("partial_rotary_factor other than 1 is not supported");
  }
  check_rope(keys, config);
}

// A window at least as long as the model's context never cuts anything.
void check_attention_window(const Keys& keys, const nn::TransformerConfig& config) {
  const bool is_mistral = config.architecture == "mistral";
  // transformers' MistralConfig assumes 4096 where the key is absent; null says there is none.
  const int64_t window = keys.is_null("sliding_window") ? config.max_seq_len
                                                        : keys.positive_or("sliding_window", 4096);
  // Qwen's first max_window_layers layers see everything.
  const bool is_qwen = config.architecture == "qwen2" || config.architecture == "qwen3";
  const bool is_used =
      is_mistral || (is_qwen && keys.value_or<bool>("use_sliding_window", false) &&
                     keys.value_or<int64_t>("max_window_layers", 28) < config.num_layers);
  if (is_used && window < config.max_seq_len) {
    keys.fail("a sliding attention window of " + std::to_string(window) +
              " is not supported; expected sliding_window null or at least "
              "max_position_embeddings " +
              std::to_string(config.max_seq_len) +
              "; lower max_position_embeddings to train within the window");
  }
}

void check_supported(const Keys& keys, const nn::TransformerConfig& config) {
  const std::string activation = keys.value_or<std::string>("hidden_act", "silu");
  if (activation != "silu") {
    keys.fail("hidden_act '" + activation + "' is not supported; supported: silu");
  }
  if (keys.has("quantization_config")) {
    keys.fail(
        "quantization_config: quantized weights cannot be trained; use the model they came "
        "from");
  }
  check_attention_window(keys, config);
  if (config.num_heads % config.num_kv_heads != 0) {
    keys.fail("expected num_key_value_heads to divide num_attention_heads " +
              std::to_string(config.num_heads) + ", got " + std::to_string(config.num_kv_heads));
  }
  if (config.num_heads * config.head_dim > kMaxSize) {
    keys.fail("expected num_attention_heads * head_dim of at most " + std::to_string(kMaxSize) +
              ", got " + std::to_string(config.num_heads) + " * " +
              std::to_string(config.head_dim));
  }
  if (config.head_dim % 2 != 0) {
    keys.fail("expected an even head_dim (rotary embedding turns pairs), got " +
              std::to_string(config.head_dim));
  }
}

void read_shape(const Keys& keys, const Architecture& architecture, nn::TransformerConfig& config) {
  config.vocab_size = keys.positive("vocab_size");
  config.dim = keys.positive("hidden_size");
  config.num_layers = keys.positive("num_hidden_layers", kMaxLayers);
  config.num_heads = keys.positive("num_attention_heads");
  config.ffn_dim = keys.positive("intermediate_size");
  config.num_kv_heads = architecture.kv_heads_default_to_heads
                            ? keys.positive_or("num_key_value_heads", config.num_heads)
                            : keys.positive("num_key_value_heads");
  if (!keys.has("head_dim") && !architecture.default_head_dim &&
      config.dim % config.num_heads != 0) {
    keys.fail("expected num_attention_heads to divide hidden_size " + std::to_string(config.dim) +
              ", got " + std::to_string(config.num_heads) + "; or give head_dim");
  }
  config.head_dim = keys.positive_or(
      "head_dim", architecture.default_head_dim.value_or(config.dim / config.num_heads));
  config.max_seq_len =
      keys.positive_or("max_position_embeddings", architecture.max_position_embeddings);
}

std::vector<int64_t> read_token_ids(const Keys& keys, const char* key) {
  if (!keys.has(key)) {
    return {};
  }
  const json list = keys[key].is_array() ? keys[key] : json::array({keys[key]});
  std::vector<int64_t> ids;
  for (const json& id : list) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0) {
      // Some files write -1 for "none".
      if (id == -1) {
        continue;
      }
      keys.fail("expected token ids in '" + std::string(key) + "', got " + quoted(keys[key]));
    }
    ids.push_back(id.get<int64_t>());
  }
  return ids;
}

std::optional<int64_t> read_token_id(const Keys& keys, const char* key) {
  const std::vector<int64_t> ids = read_token_ids(keys, key);
  return ids.empty() ? std::nullopt : std::optional<int64_t>(ids.front());
}

const Architecture& find_architecture(const std::string& name, const std::string& source) {
  const auto found = architectures().find(name);
  if (found == architectures().end()) {
    throw std::runtime_error(source + ": model_type '" + name +
                             "' is not supported; supported: " + supported_architectures());
  }
  return found->second;
}

}  // namespace

HuggingFaceConfig parse_huggingface_config(std::string_view text, const std::string& source) {
  const json root = parse_strict_json(text, source);
  const Keys keys(root, source);
  HuggingFaceConfig result;
  nn::TransformerConfig& config = result.transformer;
  config.architecture = keys.required<std::string>("model_type");
  const Architecture& architecture = find_architecture(config.architecture, source);
  read_shape(keys, architecture, config);
  config.norm_eps = keys.value_or<double>("rms_norm_eps", 1e-6);
  config.initializer_range = keys.value_or<double>("initializer_range", 0.02);
  config.tie_word_embeddings = keys.value_or<bool>("tie_word_embeddings", false);
  config.attention_output_bias =
      architecture.attention_bias_key && keys.value_or<bool>("attention_bias", false);
  config.attention_bias = architecture.qkv_bias || config.attention_output_bias;
  config.mlp_bias = architecture.mlp_bias_key && keys.value_or<bool>("mlp_bias", false);
  config.qk_norm = architecture.qk_norm;
  read_rope(keys, config);
  check_supported(keys, config);
  result.dtype =
      keys.value_or<std::string>("dtype", keys.value_or<std::string>("torch_dtype", "float32"));
  result.bos_token_id = read_token_id(keys, "bos_token_id");
  result.eos_token_ids = read_token_ids(keys, "eos_token_id");
  result.pad_token_id = read_token_id(keys, "pad_token_id");
  return result;
}

HuggingFaceConfig read_huggingface_config(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / "config.json";
  return parse_huggingface_config(read_file(path, kMaxConfigBytes), path.string());
}

namespace {

json optional_id(const std::optional<int64_t>& id) { return id ? json(*id) : json(nullptr); }

json eos_ids(const std::vector<int64_t>& ids) {
  if (ids.empty()) {
    return nullptr;
  }
  return ids.size() == 1 ? json(ids.front()) : json(ids);
}

json rope_scaling(const nn::TransformerConfig& config) {
  if (config.rope_scaling == "none") {
    return nullptr;
  }
  json scaling = {{"rope_type", config.rope_scaling}, {"factor", config.rope_factor}};
  if (config.rope_scaling == "llama3") {
    scaling["low_freq_factor"] = config.rope_low_freq_factor;
    scaling["high_freq_factor"] = config.rope_high_freq_factor;
    scaling["original_max_position_embeddings"] = config.rope_original_max_seq_len;
  }
  return scaling;
}

void check_expressible(const nn::TransformerConfig& config, const Architecture& architecture) {
  const bool qkv_fits =
      config.attention_bias ==
      (architecture.qkv_bias || (architecture.attention_bias_key && config.attention_output_bias));
  const bool output_fits = architecture.attention_bias_key || !config.attention_output_bias;
  const bool mlp_fits = architecture.mlp_bias_key || !config.mlp_bias;
  if (!qkv_fits || !output_fits || !mlp_fits || config.qk_norm != architecture.qk_norm) {
    throw std::invalid_argument(
        std::string("a Hugging Face ") + config.architecture + " cannot have attention_bias " +
        (config.attention_bias ? "true" : "false") + ", attention_output_bias " +
        (config.attention_output_bias ? "true" : "false") + ", mlp_bias " +
        (config.mlp_bias ? "true" : "false") + ", qk_norm " + (config.qk_norm ? "true" : "false") +
        " together; choose another model.architecture");
  }
}

}  // namespace

std::string huggingface_config_json(const HuggingFaceConfig& source) {
  const nn::TransformerConfig& config = source.transformer;
  const Architecture& architecture = find_architecture(config.architecture, "model.architecture");
  check_expressible(config, architecture);
  nlohmann::ordered_json root = {
      {"architectures", {architecture.class_name}},
      {"model_type", config.architecture},
      {"vocab_size", config.vocab_size},
      {"hidden_size", config.dim},
      {"intermediate_size", config.ffn_dim},
      {"num_hidden_layers", config.num_layers},
      {"num_attention_heads", config.num_heads},
      {"num_key_value_heads", config.num_kv_heads},
      {"head_dim", config.head_dim},
      {"hidden_act", "silu"},
      {"max_position_embeddings", config.max_seq_len},
      {"initializer_range", config.initializer_range},
      {"rms_norm_eps", config.norm_eps},
      {"rope_theta", config.rope_theta},
      {"rope_scaling", rope_scaling(config)},
      {"tie_word_embeddings", config.tie_word_embeddings},
      {"attention_dropout", 0.0},
      {"use_cache", true},
      {"bos_token_id", optional_id(source.bos_token_id)},
      {"eos_token_id", eos_ids(source.eos_token_ids)},
      {"pad_token_id", optional_id(source.pad_token_id)},
      {"torch_dtype", source.dtype},
  };
  if (architecture.attention_bias_key) {
    root["attention_bias"] = config.attention_output_bias;
  }
  if (architecture.mlp_bias_key) {
    root["mlp_bias"] = config.mlp_bias;
  }
  if (config.architecture != "llama") {
    root["sliding_window"] = nullptr;
  }
  if (config.architecture == "qwen2" || config.architecture == "qwen3") {
    root["use_sliding_window"] = false;
  }
  return root.dump(2) + "\n";
}

std::string huggingface_generation_config_json(const HuggingFaceConfig& config) {
  nlohmann::ordered_json root = {{"_from_model_config", true}};
  if (config.bos_token_id) {
    root["bos_token_id"] = *config.bos_token_id;
  }
  if (!config.eos_token_ids.empty()) {
    root["eos_token_id"] = eos_ids(config.eos_token_ids);
  }
  if (config.pad_token_id) {
    root["pad_token_id"] = *config.pad_token_id;
  }
  return root.dump(2) + "\n";
}

}  // namespace narrowgauge::checkpoint

#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nn/transformer_config.h"

namespace narrowgauge::checkpoint {

// What config.json says: the model's shape, and what the model itself does not know.
struct HuggingFaceConfig {
  nn::TransformerConfig transformer;
  std::string dtype = "float32";  // of the stored weights: float32 | bfloat16 | float16
  std::optional<int64_t> bos_token_id;
  std::vector<int64_t> eos_token_ids;
  std::optional<int64_t> pad_token_id;
};

// From the text of a config.json, in the spelling of transformers 5 (rope_parameters, dtype) or of
// older ones (rope_theta, rope_scaling, torch_dtype). Keys that the file leaves out get the
// defaults of transformers' own config class where that has one that depends on nothing else;
// shapes must be there. Refuses, with std::runtime_error naming `source`, the key and the value,
// whatever would compute something else here: another architecture, activation or rotary scaling,
// an active sliding window, quantized weights.
HuggingFaceConfig parse_huggingface_config(std::string_view text, const std::string& source);

// From DIRECTORY/config.json.
HuggingFaceConfig read_huggingface_config(const std::filesystem::path& directory);

// Texts of config.json and generation_config.json. The older spelling: every version of
// transformers, vLLM and llama.cpp reads it. Throws std::invalid_argument for a config that the
// architecture cannot express (a q/k norm on llama, say).
std::string huggingface_config_json(const HuggingFaceConfig& config);
std::string huggingface_generation_config_json(const HuggingFaceConfig& config);

}  // namespace narrowgauge::checkpoint

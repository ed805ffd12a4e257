#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lora/lora_linear.h"
#include "nn/layer.h"
#include "nn/transformer_config.h"

namespace narrowgauge::lora {

// Layers by what trains of them; all else is frozen.
struct Adapted {
  std::vector<std::string> linears;          // A and B beside them
  std::vector<std::string> modules_to_save;  // their own parameters, and no adapter
};

// What may be adapted, by the end of a layer's name from a dot on: names or globs ("*_proj",
// "self_attn.*", "down_proj").
struct AdaptedNames {
  std::vector<std::string> targets;
  std::vector<std::string> modules_to_save = {};
};

// Gives adapters to the Linears below `root` that names.targets matches, fake-quantized ones
// included, and freezes every other parameter but those of the layers that names.modules_to_save
// matches: Linears, Embeddings, norms. A layer that both match has no adapter. After qat::prepare,
// before fully_shard. Throws c10::Error for a name that matches no such layer, and where no Linear
// is left to adapt.
Adapted add_adapters(nn::Layer& root, const LoRASpec& spec, const AdaptedNames& names);

// Lets the adapters below `root` drop what their spec says, where the position that it returns is
// one of training; before that they drop nothing.
std::shared_ptr<BatchPosition> set_dropout(nn::Layer& root, uint64_t seed);

// Whether a parameter belongs to an adapter, by its name.
bool is_adapter(const std::string& parameter);

// Fills the rows of an adapter's parameter that begin at row_begin: A with the variance of PEFT's
// (uniform in +-1 / sqrt(in)) from seed, name and position, B with zeros.
void initialize_adapter(uint64_t seed, const std::string& parameter, const at::Tensor& shard,
                        int64_t row_begin);

using FullParameter = std::function<at::Tensor(const std::string& name)>;

// `full_parameter` with the adapters of `linears` (from add_adapters) merged into their weights. A
// weight is asked for together with its two matrices, in this order: weight, A, B. dtype: in which
// they are merged, that of forward where the merged weight is quantized.
FullParameter merged_parameters(const FullParameter& full_parameter,
                                const std::vector<std::string>& linears, const LoRASpec& spec,
                                at::ScalarType dtype);

// The parameters that write_peft_adapter asks for, in its order.
std::vector<std::string> trained_parameters(const nn::TransformerConfig& config,
                                            const Adapted& adapted);

// Writes what was trained as the peft library does: adapter_config.json and
// adapter_model.safetensors with base_model.model.<Hugging Face name>.lora_A.weight and lora_B. Of
// a fused projection each part has its rows of B and a copy of A. A module to save is there under
// its own name (base_model.model.lm_head.weight). A tied embedding is there as the head, too,
// since the library would train and load a copy of each. The directory is made. base_model: what
// adapter_config.json names as such, a path or "". Throws std::runtime_error.
void write_peft_adapter(const std::filesystem::path& directory, const nn::TransformerConfig& config,
                        const LoRASpec& spec, const std::string& base_model, const Adapted& adapted,
                        const FullParameter& full_parameter);

}  // namespace narrowgauge::lora

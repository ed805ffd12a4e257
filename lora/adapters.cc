#include "lora/adapters.h"

#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>
#include <fnmatch.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <utility>

#include "checkpoint/durable_file.h"
#include "checkpoint/huggingface_names.h"
#include "checkpoint/safetensors.h"
#include "nn/normal_init.h"

namespace narrowgauge::lora {
namespace {

constexpr std::string_view kA = ".lora_A";
constexpr std::string_view kB = ".lora_B";
constexpr std::string_view kWeight = ".weight";
constexpr std::string_view kPeftPrefix = "base_model.model.";

bool matches(const std::string& target, const std::string& fqn) {
  for (size_t begin = 0;; ++begin) {
    if (fnmatch(target.c_str(), fqn.c_str() + begin, FNM_PERIOD) == 0) {
      return true;
    }
    begin = fqn.find('.', begin);
    if (begin == std::string::npos) {
      return false;
    }
  }
}

// A layer that has parameters of its own.
struct Place {
  nn::Layer* parent;
  std::string name;
  std::string fqn;
  std::shared_ptr<nn::Layer> layer;
};

void collect_places(nn::Layer& layer, const std::string& prefix, std::vector<Place>& places) {
  for (const auto& [name, child] : layer.child_layers()) {
    if (!child->parameters(/*recurse=*/false).empty()) {
      places.push_back({&layer, name, prefix + name, child});
    }
    collect_places(*child, prefix + name + ".", places);
  }
}

// Which of some names or globs match a layer, and which have matched one so far.
class Patterns {
 public:
  explicit Patterns(const std::vector<std::string>& patterns) : patterns_(patterns) {}

  bool match(const std::string& fqn) {
    bool found = false;
    for (const std::string& pattern : patterns_) {
      if (matches(pattern, fqn)) {
        used_.insert(pattern);
        found = true;
      }
    }
    return found;
  }

  // expected: "a linear", and what a user may have meant.
  void check_all_used(const char* expected, const char* examples) const {
    for (const std::string& pattern : patterns_) {
      TORCH_CHECK(used_.contains(pattern), "expected ", expected, " whose name ends with ", pattern,
                  "; among them are ", examples);
    }
  }

 private:
  const std::vector<std::string>& patterns_;
  std::set<std::string> used_;
};

std::shared_ptr<nn::Linear> with_adapter(const nn::Linear& linear, const LoRASpec& spec) {
  if (const auto* fake = dynamic_cast<const qat::FakeQuantizedLinear*>(&linear)) {
    return std::make_shared<LoRAFakeQuantizedLinear>(*fake, spec);
  }
  return std::make_shared<LoRALinear>(linear, spec);
}

// "layers.0.mlp.down_proj" of "layers.0.mlp.down_proj.weight".
std::string without(std::string_view name, std::string_view ending) {
  return std::string(name.substr(0, name.size() - ending.size()));
}

std::string owner_of(const std::string& parameter) {
  return parameter.substr(0, parameter.rfind('.'));
}

std::vector<checkpoint::ParameterSpec> parameters_to_save(const nn::TransformerConfig& config,
                                                          const Adapted& adapted) {
  const std::set<std::string> modules(adapted.modules_to_save.begin(),
                                      adapted.modules_to_save.end());
  std::vector<checkpoint::ParameterSpec> parameters;
  for (const checkpoint::ParameterSpec& parameter : checkpoint::parameter_specs(config)) {
    if (modules.contains(owner_of(parameter.name))) {
      parameters.push_back(parameter);
    }
  }
  return parameters;
}

// What the files of the peft library hold, by its names.
struct PeftTensors {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  std::set<std::string> targets;          // the last parts of the linears' names
  std::set<std::string> modules_to_save;  // whole names: "norm" alone would match all norms

  void add_adapter(const nn::TransformerConfig& config, const std::string& linear,
                   const at::Tensor& a, const at::Tensor& b) {
    const checkpoint::ParameterSpec weight{linear + std::string(kWeight), {b.size(0), a.size(1)}};
    for (const auto& piece : checkpoint::huggingface_pieces(config, weight)) {
      const std::string module = without(piece.name, kWeight);
      targets.insert(module.substr(module.rfind('.') + 1));
      tensors.emplace_back(std::string(kPeftPrefix) + module + ".lora_A.weight", a.contiguous());
      tensors.emplace_back(
          std::string(kPeftPrefix) + module + ".lora_B.weight",
          b.narrow(0, piece.row_begin, piece.row_end - piece.row_begin).contiguous());
    }
  }

  void add_saved(const nn::TransformerConfig& config, const checkpoint::ParameterSpec& parameter,
                 const at::Tensor& value) {
    for (const auto& piece : checkpoint::huggingface_pieces(config, parameter)) {
      add_saved(piece.name,
                value.narrow(0, piece.row_begin, piece.row_end - piece.row_begin).contiguous());
    }
    if (config.tie_word_embeddings && parameter.name == "embed_tokens.weight") {
      add_saved("lm_head.weight", value.contiguous());
    }
  }

  void add_saved(const std::string& name, const at::Tensor& value) {
    modules_to_save.insert(owner_of(name));
    tensors.emplace_back(std::string(kPeftPrefix) + name, value);
  }
};

}  // namespace

Adapted add_adapters(nn::Layer& root, const LoRASpec& spec, const AdaptedNames& names) {
  std::vector<Place> places;
  collect_places(root, "", places);
  for (const auto& parameter : root.parameters()) {
    parameter.set_requires_grad(false);
  }
  Patterns targets(names.targets);
  Patterns to_save(names.modules_to_save);
  Adapted adapted;
  for (const Place& place : places) {
    const auto linear = std::dynamic_pointer_cast<nn::Linear>(place.layer);
    const bool is_target = linear && targets.match(place.fqn);
    if (to_save.match(place.fqn)) {
      for (const auto& parameter : place.layer->parameters(/*recurse=*/false)) {
        parameter.set_requires_grad(true);
      }
      adapted.modules_to_save.push_back(place.fqn);
    } else if (is_target) {
      const auto replacement = with_adapter(*linear, spec);
      place.parent->replace_child(place.name, replacement);
      for (const auto& item : replacement->named_parameters(/*recurse=*/false)) {
        item.value().set_requires_grad(is_adapter("." + item.key()));
      }
      adapted.linears.push_back(place.fqn);
    }
  }
  targets.check_all_used("a linear", "qkv_proj, o_proj, gate_up_proj and down_proj");
  to_save.check_all_used("a layer with parameters",
                         "embed_tokens, input_layernorm, norm and, where it is not tied to "
                         "embed_tokens, lm_head");
  TORCH_CHECK(!adapted.linears.empty(),
              "expected a linear that is not trained in full; all targets are modules to save");
  return adapted;
}

std::shared_ptr<BatchPosition> set_dropout(nn::Layer& root, uint64_t seed) {
  const auto position = std::make_shared<BatchPosition>();
  const auto set = [&](const std::string& fqn, auto& adapted) {
    adapted.dropout = AdapterDropout(adapted.lora_spec.dropout, seed, fqn, position);
  };
  for (const auto& item : root.named_modules("", /*include_self=*/false)) {
    if (auto* linear = dynamic_cast<LoRALinear*>(item.value().get())) {
      set(item.key(), *linear);
    } else if (auto* fake = dynamic_cast<LoRAFakeQuantizedLinear*>(item.value().get())) {
      set(item.key(), *fake);
    }
  }
  return position;
}

bool is_adapter(const std::string& parameter) {
  return std::string_view(parameter).ends_with(kA) || std::string_view(parameter).ends_with(kB);
}

void initialize_adapter(uint64_t seed, const std::string& parameter, const at::Tensor& shard,
                        int64_t row_begin) {
  if (std::string_view(parameter).ends_with(kB)) {
    shard.zero_();
    return;
  }
  const at::Tensor values = shard.is_cpu() ? shard : at::empty_like(shard, at::kCPU);
  const int64_t in_features = shard.size(1);
  nn::fill_normal(values, seed, parameter, row_begin * in_features, 0.0,
                  1.0 / std::sqrt(3.0 * static_cast<double>(in_features)));
  if (!shard.is_cpu()) {
    shard.copy_(values);
  }
}

FullParameter merged_parameters(const FullParameter& full_parameter,
                                const std::vector<std::string>& linears, const LoRASpec& spec,
                                at::ScalarType dtype) {
  const std::set<std::string> adapted(linears.begin(), linears.end());
  return [full_parameter, adapted, spec, dtype](const std::string& name) {
    const bool is_weight = std::string_view(name).ends_with(kWeight);
    const std::string linear = is_weight ? without(name, kWeight) : "";
    if (!adapted.contains(linear)) {
      return full_parameter(name);
    }
    const at::Tensor weight = full_parameter(name).detach().to(dtype);
    const at::Tensor a = full_parameter(linear + std::string(kA)).detach().to(dtype);
    const at::Tensor b = full_parameter(linear + std::string(kB)).detach().to(dtype);
    return merged_weight(weight, a, b, spec);
  };
}

std::vector<std::string> trained_parameters(const nn::TransformerConfig& config,
                                            const Adapted& adapted) {
  std::vector<std::string> names;
  for (const std::string& linear : adapted.linears) {
    names.push_back(linear + std::string(kA));
    names.push_back(linear + std::string(kB));
  }
  for (const auto& parameter : parameters_to_save(config, adapted)) {
    names.push_back(parameter.name);
  }
  return names;
}

void write_peft_adapter(const std::filesystem::path& directory, const nn::TransformerConfig& config,
                        const LoRASpec& spec, const std::string& base_model, const Adapted& adapted,
                        const FullParameter& full_parameter) {
  PeftTensors peft;
  for (const std::string& linear : adapted.linears) {
    const at::Tensor a = full_parameter(linear + std::string(kA)).detach().to(at::kCPU);
    const at::Tensor b = full_parameter(linear + std::string(kB)).detach().to(at::kCPU);
    peft.add_adapter(config, linear, a, b);
  }
  for (const auto& parameter : parameters_to_save(config, adapted)) {
    peft.add_saved(config, parameter, full_parameter(parameter.name).detach().to(at::kCPU));
  }
  nlohmann::ordered_json modules_to_save;  // null where there are none
  for (const std::string& module : peft.modules_to_save) {
    modules_to_save.push_back(module);
  }
  const nlohmann::ordered_json description = {{"peft_type", "LORA"},
                                              {"task_type", "CAUSAL_LM"},
                                              {"base_model_name_or_path", base_model},
                                              {"r", spec.rank},
                                              {"lora_alpha", spec.alpha},
                                              {"lora_dropout", spec.dropout},
                                              {"target_modules", peft.targets},
                                              {"modules_to_save", modules_to_save},
                                              {"bias", "none"},
                                              {"fan_in_fan_out", false},
                                              {"use_rslora", false},
                                              {"use_dora", false},
                                              {"init_lora_weights", true},
                                              {"inference_mode", true}};
  std::filesystem::create_directories(directory);
  checkpoint::write_safetensors(directory / "adapter_model.safetensors", peft.tensors,
                                {{"format", "pt"}});
  checkpoint::write_durable_file(directory / "adapter_config.json", description.dump(2) + "\n");
}

}  // namespace narrowgauge::lora

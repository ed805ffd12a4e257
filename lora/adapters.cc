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

struct Place {
  nn::Layer* parent;
  std::string name;
  std::string fqn;
  std::shared_ptr<nn::Linear> linear;
};

void collect_linears(nn::Layer& layer, const std::string& prefix, std::vector<Place>& places) {
  for (const auto& [name, child] : layer.child_layers()) {
    if (auto linear = std::dynamic_pointer_cast<nn::Linear>(child)) {
      places.push_back({&layer, name, prefix + name, std::move(linear)});
    }
    collect_linears(*child, prefix + name + ".", places);
  }
}

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

}  // namespace

std::vector<std::string> add_adapters(nn::Layer& root, const LoRASpec& spec,
                                      const std::vector<std::string>& targets) {
  std::vector<Place> places;
  collect_linears(root, "", places);
  for (const auto& parameter : root.parameters()) {
    parameter.set_requires_grad(false);
  }
  std::set<std::string> used;
  std::vector<std::string> names;
  for (const Place& place : places) {
    for (const std::string& target : targets) {
      if (matches(target, place.fqn)) {
        used.insert(target);
        place.parent->replace_child(place.name, with_adapter(*place.linear, spec));
        names.push_back(place.fqn);
        break;
      }
    }
  }
  for (const std::string& target : targets) {
    TORCH_CHECK(used.contains(target), "expected a linear whose name ends with ", target,
                "; among them are qkv_proj, o_proj, gate_up_proj and down_proj");
  }
  for (const auto& parameter : root.named_parameters()) {
    parameter.value().set_requires_grad(is_adapter(parameter.key()));
  }
  return names;
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

void write_peft_adapter(const std::filesystem::path& directory, const nn::TransformerConfig& config,
                        const LoRASpec& spec, const std::string& base_model,
                        const std::vector<std::string>& linears,
                        const FullParameter& full_parameter) {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  std::set<std::string> targets;
  for (const std::string& linear : linears) {
    const at::Tensor a = full_parameter(linear + std::string(kA)).detach().to(at::kCPU);
    const at::Tensor b = full_parameter(linear + std::string(kB)).detach().to(at::kCPU);
    const checkpoint::ParameterSpec weight{linear + std::string(kWeight), {b.size(0), a.size(1)}};
    for (const auto& piece : checkpoint::huggingface_pieces(config, weight)) {
      const std::string module = without(piece.name, kWeight);
      targets.insert(module.substr(module.rfind('.') + 1));
      tensors.emplace_back("base_model.model." + module + ".lora_A.weight", a.contiguous());
      tensors.emplace_back(
          "base_model.model." + module + ".lora_B.weight",
          b.narrow(0, piece.row_begin, piece.row_end - piece.row_begin).contiguous());
    }
  }
  const nlohmann::ordered_json description = {{"peft_type", "LORA"},
                                              {"task_type", "CAUSAL_LM"},
                                              {"base_model_name_or_path", base_model},
                                              {"r", spec.rank},
                                              {"lora_alpha", spec.alpha},
                                              {"lora_dropout", spec.dropout},
                                              {"target_modules", targets},
                                              {"bias", "none"},
                                              {"fan_in_fan_out", false},
                                              {"use_rslora", false},
                                              {"use_dora", false},
                                              {"init_lora_weights", true},
                                              {"inference_mode", true}};
  std::filesystem::create_directories(directory);
  checkpoint::write_safetensors(directory / "adapter_model.safetensors", tensors,
                                {{"format", "pt"}});
  checkpoint::write_durable_file(directory / "adapter_config.json", description.dump(2) + "\n");
}

}  // namespace narrowgauge::lora

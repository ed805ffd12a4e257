#include "trainer/load_model.h"

#include <ATen/core/grad_mode.h>

#include <cstdio>
#include <filesystem>
#include <stdexcept>

#include "checkpoint/huggingface_directory.h"
#include "checkpoint/huggingface_names.h"

namespace narrowgauge::trainer {
namespace {

namespace fs = std::filesystem;

fs::path model_directory(const std::string& path) {
  if (!fs::exists(fs::path(path) / "config.json") &&
      fs::exists(fs::path(path) / "hf" / "config.json")) {
    return fs::path(path) / "hf";
  }
  return path;
}

data::TokenizerOptions tokenizer_options(const fs::path& directory, const std::string& named) {
  if (named == "bytes" || named == "none") {
    return {named, ""};
  }
  const fs::path source = named.empty() ? directory : fs::path(named);
  const fs::path folder = fs::is_directory(source) ? source : source.parent_path();
  if (source.filename() == "encoder.json" ||
      (fs::is_directory(source) && fs::exists(folder / "encoder.json"))) {
    return {"gpt2", source};
  }
  if (source.extension() == ".model") {
    return {"sentencepiece", source};
  }
  if (fs::is_directory(source) && !fs::exists(folder / "tokenizer.json")) {
    if (fs::exists(folder / "tokenizer.model")) {
      return {"sentencepiece", folder / "tokenizer.model"};
    }
    if (named.empty()) {
      return {"none", ""};
    }
  }
  return {"huggingface", source};
}

// The module whose own parameter is `fqn`, and that parameter's name in it.
std::pair<nn::Layer*, std::string> owner_of(nn::Layer& root, const std::string& fqn) {
  nn::Layer* layer = &root;
  std::string rest = fqn;
  for (size_t dot = rest.find('.'); dot != std::string::npos; dot = rest.find('.')) {
    const std::string child = rest.substr(0, dot);
    rest = rest.substr(dot + 1);
    nn::Layer* next = nullptr;
    for (const auto& [name, candidate] : layer->child_layers()) {
      if (name == child) {
        next = candidate.get();
      }
    }
    TORCH_CHECK(next != nullptr, "expected a parameter of the model, got '", fqn, "'");
    layer = next;
  }
  return {layer, rest};
}

}  // namespace

LoadedModel load_model(const std::string& path, const std::string& tokenizer, at::Device device) {
  const fs::path directory = model_directory(path);
  const auto source = checkpoint::HuggingFaceDirectory::open(directory);
  for (const std::string& name : source.validate()) {
    std::fprintf(stderr, "%s: tensor %s is not part of the model and is left out\n",
                 directory.c_str(), name.c_str());
  }
  const at::NoGradGuard no_grad;
  const at::ScalarType dtype = source.config().dtype == "bfloat16" ? at::kBFloat16 : at::kFloat;
  const nn::TransformerConfig& config = source.config().transformer;
  LoadedModel loaded;
  loaded.model =
      std::make_shared<nn::Transformer>(config, at::TensorOptions().device(at::kMeta).dtype(dtype));
  for (const checkpoint::ParameterSpec& spec : checkpoint::parameter_specs(config)) {
    const auto [layer, name] = owner_of(*loaded.model, spec.name);
    layer->replace_parameter(name, source.parameter(spec.name, dtype).to(device));
  }
  loaded.tokenizer = data::load_tokenizer(tokenizer_options(directory, tokenizer));
  loaded.eos_tokens = source.config().eos_token_ids;
  return loaded;
}

}  // namespace narrowgauge::trainer

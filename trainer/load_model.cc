#include "trainer/load_model.h"

#include <ATen/core/grad_mode.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <stdexcept>

#include "checkpoint/huggingface_directory.h"
#include "checkpoint/huggingface_names.h"
#include "quantization/quantized_model.h"
#include "sparsity/packed_semi_sparse_linear.h"
#include "trainer/config_reader.h"
#include "trainer/install_quantized_model.h"
#include "trainer/run_directory.h"
#include "trainer/run_tokenizer.h"

namespace narrowgauge::trainer {
namespace {

namespace fs = std::filesystem;

bool is_run(const fs::path& path) { return fs::exists(path / "config.yaml"); }

}  // namespace

fs::path model_directory(const fs::path& path) {
  if (!is_run(path)) {
    return path;
  }
  const fs::path exported = path / "hf";
  if (!fs::exists(exported / "config.json")) {
    throw std::runtime_error(path.string() + " has no hf/ yet; make it with narrowgauge export " +
                             path.string());
  }
  const fs::path latest = path / "checkpoints" / "latest";
  if (fs::exists(latest) &&
      fs::last_write_time(latest) >
          fs::last_write_time(exported / "config.json") + std::chrono::minutes(1)) {
    std::fprintf(stderr,
                 "%s is older than the newest checkpoint; narrowgauge export %s renews it\n",
                 exported.c_str(), path.c_str());
  }
  return exported;
}

namespace {

std::shared_ptr<const data::Tokenizer> own_tokenizer(const fs::path& path) {
  if (is_run(path)) {
    TrainConfig config = read_config(path / "config.yaml", {});
    config.job.run_dir = path;  // the run may have been moved
    return load_run_tokenizer(config, RunDirectory::attach(config));
  }
  for (const char* name : {"tokenizer.json", "tokenizer.model", "encoder.json"}) {
    if (fs::exists(path / name)) {
      return data::load_tokenizer(data::guess_tokenizer(path));
    }
  }
  return nullptr;
}

std::shared_ptr<nn::Transformer> meta_model(const checkpoint::HuggingFaceConfig& config) {
  const at::ScalarType dtype = config.dtype == "bfloat16" ? at::kBFloat16 : at::kFloat;
  return std::make_shared<nn::Transformer>(config.transformer,
                                           at::TensorOptions().device(at::kMeta).dtype(dtype));
}

std::shared_ptr<nn::Transformer> load_full_width(const fs::path& directory,
                                                 checkpoint::HuggingFaceConfig& config,
                                                 at::Device device) {
  const auto source = checkpoint::HuggingFaceDirectory::open(directory);
  for (const std::string& name : source.validate()) {
    std::fprintf(stderr, "%s: tensor %s is not part of the model and is left out\n",
                 directory.c_str(), name.c_str());
  }
  config = source.config();
  const at::ScalarType dtype = config.dtype == "bfloat16" ? at::kBFloat16 : at::kFloat;
  auto model = meta_model(config);
  for (const checkpoint::ParameterSpec& spec : checkpoint::parameter_specs(config.transformer)) {
    model->replace_parameter(spec.name, source.parameter(spec.name, dtype).to(device));
  }
  sparsity::pack_semi_structured_linears(*model);
  return model;
}

}  // namespace

std::shared_ptr<const data::Tokenizer> load_model_tokenizer(const std::string& path,
                                                            const std::string& tokenizer) {
  return tokenizer.empty() ? own_tokenizer(path)
                           : data::load_tokenizer(data::guess_tokenizer(tokenizer));
}

LoadedModel load_model(const std::string& path, const std::string& tokenizer, at::Device device) {
  const at::NoGradGuard no_grad;
  const fs::path directory = model_directory(path);
  checkpoint::HuggingFaceConfig config;
  LoadedModel loaded;
  if (fs::exists(directory / quantization::kQuantizedModelFile)) {
    config = checkpoint::read_huggingface_config(directory);
    loaded.model = meta_model(config);
    install_quantized_model(quantization::read_quantized_model(directory), *loaded.model, device);
  } else {
    loaded.model = load_full_width(directory, config, device);
  }
  loaded.tokenizer = load_model_tokenizer(path, tokenizer);
  const int64_t vocab_size = config.transformer.vocab_size;
  if (loaded.tokenizer && loaded.tokenizer->vocab_size() > vocab_size) {
    throw std::runtime_error("expected a tokenizer of at most the model's " +
                             std::to_string(vocab_size) + " ids, got one of " +
                             std::to_string(loaded.tokenizer->vocab_size()));
  }
  loaded.eos_tokens = config.eos_token_ids;
  return loaded;
}

}  // namespace narrowgauge::trainer

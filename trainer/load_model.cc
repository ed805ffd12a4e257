#include "trainer/load_model.h"

#include <ATen/core/grad_mode.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <stdexcept>

#include "checkpoint/huggingface_directory.h"
#include "checkpoint/huggingface_names.h"
#include "trainer/config_reader.h"
#include "trainer/run_directory.h"
#include "trainer/run_tokenizer.h"

namespace narrowgauge::trainer {
namespace {

namespace fs = std::filesystem;

bool is_run(const fs::path& path) { return fs::exists(path / "config.yaml"); }

// The Hugging Face directory that `path` is or, as a run, holds.
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
    loaded.model->replace_parameter(spec.name, source.parameter(spec.name, dtype).to(device));
  }
  loaded.tokenizer = tokenizer.empty() ? own_tokenizer(path)
                                       : data::load_tokenizer(data::guess_tokenizer(tokenizer));
  if (loaded.tokenizer && loaded.tokenizer->vocab_size() > config.vocab_size) {
    throw std::runtime_error("expected a tokenizer of at most the model's " +
                             std::to_string(config.vocab_size) + " ids, got one of " +
                             std::to_string(loaded.tokenizer->vocab_size()));
  }
  loaded.eos_tokens = source.config().eos_token_ids;
  return loaded;
}

}  // namespace narrowgauge::trainer

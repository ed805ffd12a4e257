#include "trainer/export_run.h"

#include <filesystem>

#include "checkpoint/durable_file.h"
#include "checkpoint/huggingface_config.h"
#include "checkpoint/huggingface_directory.h"

namespace narrowgauge::trainer {

namespace {

checkpoint::HuggingFaceWriteOptions write_options(const data::Tokenizer* tokenizer,
                                                  at::ScalarType dtype) {
  checkpoint::HuggingFaceWriteOptions options;
  options.dtype = dtype;
  options.copied_files = tokenizer_files(tokenizer);
  return options;
}

}  // namespace

std::vector<checkpoint::CopiedFile> tokenizer_files(const data::Tokenizer* tokenizer) {
  std::vector<checkpoint::CopiedFile> files;
  if (tokenizer != nullptr) {
    for (const data::TokenizerFile& file : tokenizer->exported_files()) {
      files.push_back({file.path, file.exported_name});
    }
  }
  return files;
}

void check_export(const std::filesystem::path& directory, const data::Tokenizer* tokenizer) {
  checkpoint::check_replaceable(directory, write_options(tokenizer, at::kFloat));
}

checkpoint::HuggingFaceConfig described_model(const RunDirectory& run,
                                              const nn::TransformerConfig& config,
                                              const data::Tokenizer* tokenizer) {
  checkpoint::HuggingFaceConfig description;
  if (std::filesystem::exists(run.base_config_file())) {
    description = checkpoint::parse_huggingface_config(
        checkpoint::read_file(run.base_config_file()), run.base_config_file().string());
  }
  description.transformer = config;
  if (tokenizer != nullptr) {
    if (!description.bos_token_id) {
      description.bos_token_id = tokenizer->bos_id();
    }
    if (const auto eos = tokenizer->eos_id(); eos && description.eos_token_ids.empty()) {
      description.eos_token_ids = {*eos};
    }
  }
  return description;
}

void export_huggingface_directory(
    const RunDirectory& run, const nn::TransformerConfig& config, const data::Tokenizer* tokenizer,
    const std::filesystem::path& directory, at::ScalarType dtype,
    const std::function<at::Tensor(const std::string&)>& full_parameter) {
  checkpoint::HuggingFaceWriteOptions options = write_options(tokenizer, dtype);
  // What the model was tuned to is what it must be served with.
  if (std::filesystem::exists(run.chat_template_file())) {
    const std::string name = run.chat_template_file().filename().string();
    std::erase_if(options.copied_files, [&](const auto& file) { return file.name == name; });
    options.copied_files.push_back({run.chat_template_file(), name});
  }
  checkpoint::write_huggingface_directory(directory, described_model(run, config, tokenizer),
                                          full_parameter, options);
}

}  // namespace narrowgauge::trainer

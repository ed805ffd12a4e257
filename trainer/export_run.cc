#include "trainer/export_run.h"

#include "checkpoint/huggingface_directory.h"

namespace narrowgauge::trainer {

void export_huggingface_directory(
    const std::filesystem::path& directory, const nn::TransformerConfig& config,
    const data::Tokenizer* tokenizer, at::ScalarType dtype,
    const std::function<at::Tensor(const std::string&)>& full_parameter) {
  checkpoint::HuggingFaceConfig description;
  description.transformer = config;
  checkpoint::HuggingFaceWriteOptions options;
  options.dtype = dtype;
  if (tokenizer != nullptr) {
    description.bos_token_id = tokenizer->bos_id();
    if (const auto eos = tokenizer->eos_id()) {
      description.eos_token_ids = {*eos};
    }
    for (const data::TokenizerFile& file : tokenizer->exported_files()) {
      options.copied_files.push_back({file.path, file.exported_name});
    }
  }
  checkpoint::write_huggingface_directory(directory, description, full_parameter, options);
}

}  // namespace narrowgauge::trainer

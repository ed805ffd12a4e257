#include "trainer/import_command.h"

#include <cstdio>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "checkpoint/huggingface_directory.h"
#include "checkpoint/llama2c.h"

namespace narrowgauge::trainer {
namespace {

namespace fs = std::filesystem;

// Files of a model directory that are not weights or their index: what a tokenizer is made of.
std::vector<checkpoint::CopiedFile> companion_files(const fs::path& directory) {
  static const std::set<std::string> kNames = {"tokenizer.json",    "tokenizer_config.json",
                                               "tokenizer.model",   "special_tokens_map.json",
                                               "vocab.json",        "merges.txt",
                                               "added_tokens.json", "chat_template.jinja"};
  std::vector<checkpoint::CopiedFile> files;
  for (const std::string& name : kNames) {
    if (fs::exists(directory / name)) {
      files.push_back({directory / name, name});
    }
  }
  return files;
}

void import_huggingface(const fs::path& from, const fs::path& output) {
  const auto source = checkpoint::HuggingFaceDirectory::open(from);
  for (const std::string& name : source.validate()) {
    std::fprintf(stderr, "%s: tensor %s is not part of the model and is left out\n", from.c_str(),
                 name.c_str());
  }
  checkpoint::HuggingFaceWriteOptions options;
  options.dtype = source.config().dtype == "float32"   ? at::kFloat
                  : source.config().dtype == "float16" ? at::kHalf
                                                       : at::kBFloat16;
  options.copied_files = companion_files(from);
  checkpoint::write_huggingface_directory(
      output, source.config(),
      [&](const std::string& name) { return source.parameter(name, std::nullopt); }, options);
}

}  // namespace

int import_command(const ImportOptions& options) {
  if (fs::is_directory(options.from)) {
    import_huggingface(options.from, options.output);
  } else {
    const checkpoint::Llama2cModel model = checkpoint::read_llama2c(options.from);
    checkpoint::HuggingFaceConfig description;
    description.transformer = model.config;
    checkpoint::HuggingFaceWriteOptions write_options;
    write_options.dtype = at::kFloat;
    checkpoint::write_huggingface_directory(
        options.output, description,
        [&](const std::string& name) { return model.parameters.at(name); }, write_options);
  }
  std::fprintf(stderr, "wrote %s\n", options.output.c_str());
  return kExitDone;
}

}  // namespace narrowgauge::trainer

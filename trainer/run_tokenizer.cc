#include "trainer/run_tokenizer.h"

#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/bpe_trainer.h"
#include "data/source_files.h"
#include "data/text_source.h"
#include "trainer/stage_progress.h"

namespace narrowgauge::trainer {
namespace {

namespace fs = std::filesystem;

// A byte-level BPE learns nothing more from text beyond this.
constexpr uint64_t kTokenizerTrainingBytes = 256 << 20;

bool trains_its_own(const TrainConfig& config) {
  return config.tokenizer.train_vocab_size > 0 && config.tokenizer.path.empty();
}

std::vector<std::string> read_documents(const DataConfig& config) {
  std::vector<data::SourceFile> files;
  for (const std::string& path : data::expand_paths(config.train)) {
    files.push_back(data::describe_file(path));
  }
  data::TextSource source(std::move(files), {config.text_field, config.invalid_utf8 == "replace"});
  std::vector<std::string> documents;
  uint64_t num_bytes = 0;
  while (num_bytes < kTokenizerTrainingBytes) {
    auto record = source.next();
    if (!record) {
      break;
    }
    documents.push_back(source.decode(std::move(*record)));
    num_bytes += documents.back().size();
  }
  return documents;
}

void write_text(const fs::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text << std::flush;
  if (!file) {
    throw std::runtime_error("cannot write " + path.string() + "; is the disk full?");
  }
}

// The folder appears under its name only when complete.
void train_tokenizer(const TrainConfig& config, const fs::path& folder) {
  const std::vector<std::string> documents = read_documents(config.data);
  const std::vector<std::string_view> views(documents.begin(), documents.end());
  StageProgress progress;
  data::BpeTrainerOptions options;
  options.vocab_size = config.tokenizer.train_vocab_size;
  options.num_threads = static_cast<int>(config.training.num_threads);
  options.progress = [&](double fraction, std::string_view stage) {
    progress.update("tokenizer, " + std::string(stage), fraction);
  };
  const fs::path unfinished = folder.string() + ".tmp";
  fs::remove_all(unfinished);
  fs::create_directories(unfinished);
  write_text(unfinished / "tokenizer.json", data::train_bpe(views, options));
  write_text(unfinished / "tokenizer_config.json", data::tokenizer_config_json(options));
  fs::rename(unfinished, folder);
}

}  // namespace

std::shared_ptr<const data::Tokenizer> load_run_tokenizer(const TrainConfig& config,
                                                          const RunDirectory& run) {
  return data::load_tokenizer({config.tokenizer.kind, trains_its_own(config)
                                                          ? run.tokenizer().string()
                                                          : config.tokenizer.path});
}

void train_run_tokenizer(const TrainConfig& config, const RunDirectory& run) {
  if (trains_its_own(config) && !fs::exists(run.tokenizer())) {
    train_tokenizer(config, run.tokenizer());
  }
}

}  // namespace narrowgauge::trainer

#include "trainer/training_data.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
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

namespace narrowgauge::trainer {
namespace {

namespace fs = std::filesystem;

// A byte-level BPE learns nothing more from text beyond this.
constexpr uint64_t kTokenizerTrainingBytes = 256 << 20;

// Stage and percentage: in place on a terminal, a line every two seconds elsewhere.
class StageProgress {
 public:
  ~StageProgress() {
    if (line_open_) {
      std::fputc('\n', stderr);
    }
  }

  void operator()(std::string_view stage, double fraction) {
    const auto now = std::chrono::steady_clock::now();
    const bool is_terminal = isatty(STDERR_FILENO) == 1;
    if (stage == stage_ && fraction < 1.0 &&
        now - shown_ < std::chrono::milliseconds(is_terminal ? 100 : 2000)) {
      return;
    }
    if (line_open_ && stage != stage_) {
      std::fputc('\n', stderr);
    }
    stage_ = stage;
    shown_ = now;
    std::fprintf(stderr, "%s%s: %.0f %%%s", is_terminal ? "\r\033[K" : "", stage_.c_str(),
                 100 * fraction, is_terminal ? "" : "\n");
    line_open_ = is_terminal;
  }

 private:
  std::string stage_;
  std::chrono::steady_clock::time_point shown_;
  bool line_open_ = false;
};

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

// Trains <run>/tokenizer unless it is there; the folder appears under its name only when complete.
void train_tokenizer(const TrainConfig& config, const fs::path& folder) {
  if (fs::exists(folder)) {
    return;
  }
  const std::vector<std::string> documents = read_documents(config.data);
  const std::vector<std::string_view> views(documents.begin(), documents.end());
  StageProgress progress;
  data::BpeTrainerOptions options;
  options.vocab_size = config.tokenizer.train_vocab_size;
  options.num_threads = static_cast<int>(config.training.num_threads);
  options.progress = [&](double fraction, std::string_view stage) {
    progress("tokenizer, " + std::string(stage), fraction);
  };
  const fs::path unfinished = folder.string() + ".tmp";
  fs::remove_all(unfinished);
  fs::create_directories(unfinished);
  write_text(unfinished / "tokenizer.json", data::train_bpe(views, options));
  write_text(unfinished / "tokenizer_config.json", data::tokenizer_config_json(options));
  fs::rename(unfinished, folder);
}

data::Split open_split(const TrainConfig& config, const data::Tokenizer* tokenizer,
                       const data::ProgressCallback& progress) {
  data::DatasetOptions options;
  options.train = config.data.train;
  options.validation = config.data.validation;
  options.validation_fraction = config.data.validation_fraction;
  options.text_field = config.data.text_field;
  options.invalid_utf8 = config.data.invalid_utf8;
  options.cache_dir = config.data.cache_dir;
  options.vocab_size = config.model.vocab_size;
  options.seed = static_cast<uint64_t>(config.training.seed);
  options.num_threads = static_cast<int>(config.training.num_threads);
  options.progress = progress;
  return data::open_dataset(options, tokenizer);
}

}  // namespace

TrainingData open_training_data(TrainConfig& config, const RunDirectory& run,
                                comm::Communicator& world) {
  const bool is_first_rank = world.rank() == 0;
  const bool is_trained_here =
      config.tokenizer.train_vocab_size > 0 && config.tokenizer.path.empty();
  if (is_trained_here && is_first_rank) {
    train_tokenizer(config, run.tokenizer());
  }
  comm::barrier(world);
  TrainingData data;
  data.tokenizer = data::load_tokenizer(
      {config.tokenizer.kind, is_trained_here ? run.tokenizer().string() : config.tokenizer.path});
  if (data.tokenizer) {
    if (config.model.vocab_size == 0) {
      config.model.vocab_size = data.tokenizer->vocab_size();
    }
    data::check_vocab_size(config.model.vocab_size, *data.tokenizer);
  }
  StageProgress progress;
  if (is_first_rank) {
    data.split = open_split(
        config, data.tokenizer.get(),
        [&](std::string_view stage, double fraction, int64_t) { progress(stage, fraction); });
  }
  comm::barrier(world);
  if (!is_first_rank) {
    data.split = open_split(config, data.tokenizer.get(), nullptr);
  }
  return data;
}

}  // namespace narrowgauge::trainer

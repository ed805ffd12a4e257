#include "trainer/run_tokenizer.h"

#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/durable_file.h"
#include "data/bpe_trainer.h"
#include "data/text_source.h"
#include "trainer/stage_progress.h"

namespace narrowgauge::trainer {
namespace {

namespace fs = std::filesystem;

bool trains_its_own(const TrainConfig& config) {
  return config.tokenizer.train_vocab_size > 0 && config.tokenizer.path.empty();
}

// The folder appears under its name only when complete.
void train_tokenizer(const TrainConfig& config, const fs::path& folder) {
  StageProgress progress;
  const std::vector<std::string> documents = data::read_documents(
      config.data.train, {config.data.text_field, config.data.invalid_utf8 == "replace"},
      data::kEnoughTrainingBytes,
      [&](double fraction) { progress.update("tokenizer, reading text", fraction); });
  const std::vector<std::string_view> views(documents.begin(), documents.end());
  data::BpeTrainerOptions options;
  options.vocab_size = config.tokenizer.train_vocab_size;
  options.num_threads = static_cast<int>(config.training.num_threads);
  options.progress = [&](double fraction, std::string_view stage) {
    progress.update("tokenizer, " + std::string(stage), fraction);
  };
  const fs::path unfinished = folder.string() + ".tmp";
  fs::remove_all(unfinished);
  fs::create_directories(unfinished);
  checkpoint::write_durable_file(unfinished / "tokenizer.json", data::train_bpe(views, options));
  checkpoint::write_durable_file(unfinished / "tokenizer_config.json",
                                 data::tokenizer_config_json(options));
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
  // A run without config.yaml never started: what an earlier attempt left may be of other text or
  // size.
  if (trains_its_own(config) && !(fs::exists(run.tokenizer()) && fs::exists(run.config_file()))) {
    fs::remove_all(run.tokenizer());
    train_tokenizer(config, run.tokenizer());
  }
}

}  // namespace narrowgauge::trainer

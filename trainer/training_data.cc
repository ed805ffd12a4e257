#include "trainer/training_data.h"

#include <stdexcept>
#include <string>
#include <string_view>

#include "trainer/run_tokenizer.h"
#include "trainer/stage_progress.h"

namespace narrowgauge::trainer {
namespace {

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
  if (is_first_rank) {
    train_run_tokenizer(config, run);
  }
  comm::barrier(world);
  TrainingData data;
  data.tokenizer = load_run_tokenizer(config, run);
  if (data.tokenizer) {
    if (config.model.vocab_size == 0) {
      config.model.vocab_size = data.tokenizer->vocab_size();
    }
    try {
      data::check_vocab_size(config.model.vocab_size, *data.tokenizer);
    } catch (const std::invalid_argument& error) {
      throw ConfigError(std::string("model.vocab_size: ") + error.what());
    }
  }
  StageProgress progress;
  if (is_first_rank) {
    data.split = open_split(config, data.tokenizer.get(),
                            [&](std::string_view stage, double fraction, int64_t) {
                              progress.update(stage, fraction);
                            });
  }
  comm::barrier(world);
  if (!is_first_rank) {
    data.split = open_split(config, data.tokenizer.get(), nullptr);
  }
  return data;
}

}  // namespace narrowgauge::trainer

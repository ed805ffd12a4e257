#include "trainer/training_data.h"

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/config_value.h"
#include "trainer/run_tokenizer.h"
#include "trainer/stage_progress.h"

namespace narrowgauge::trainer {
namespace {

data::Split open_split(const TrainConfig& config, const TrainingData& data,
                       const data::ProgressCallback& progress) {
  data::DatasetOptions options;
  options.train = config.data.train;
  options.validation = config.data.validation;
  options.validation_fraction = config.data.validation_fraction;
  options.text_field = config.data.text_field;
  options.invalid_utf8 = config.data.invalid_utf8;
  options.chat = {data.chat_template, config.data.train_on_input};
  options.separates_sources = !config.data.weights.empty();
  options.cache_dir = config.data.cache_dir;
  options.vocab_size = config.model.vocab_size;
  options.seed = static_cast<uint64_t>(config.training.seed);
  options.num_threads = static_cast<int>(config.training.num_threads);
  options.progress = progress;
  return data::open_dataset(options, data.tokenizer.get());
}

}  // namespace

data::Packing packing_of(const TrainConfig& config) {
  return config.data.packing == "documents" ? data::Packing::kDocuments : data::Packing::kStream;
}

data::DataLoader make_training_loader(const TrainConfig& config, const data::Split& split,
                                      int64_t global_batch_size) {
  const data::DataLoaderOptions options = {.seq_len = config.training.seq_len,
                                           .global_batch_size = global_batch_size,
                                           .seed = static_cast<uint64_t>(config.training.seed),
                                           .packing = packing_of(config)};
  if (config.data.weights.empty()) {
    return {split.train, options};
  }
  std::vector<data::WeightedDataset> datasets;
  for (size_t i = 0; i < split.sources.size(); ++i) {
    datasets.push_back({split.sources[i], parse_number(config.data.weights[i]).value.value()});
  }
  return {datasets, options};
}

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
  if (!config.data.chat_template.empty()) {
    data.chat_template = std::make_shared<const data::ChatTemplate>(
        data::ChatTemplate::load(config.data.chat_template, config.tokenizer.path));
  }
  StageProgress progress;
  if (is_first_rank) {
    data.split = open_split(config, data, [&](std::string_view stage, double fraction, int64_t) {
      progress.update(stage, fraction);
    });
  }
  comm::barrier(world);
  if (!is_first_rank) {
    data.split = open_split(config, data, nullptr);
  }
  return data;
}

}  // namespace narrowgauge::trainer

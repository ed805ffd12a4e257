#pragma once

#include <memory>

#include "comm/communicator.h"
#include "data/chat_template.h"
#include "data/data_loader.h"
#include "data/token_dataset.h"
#include "data/tokenizer.h"
#include "trainer/config.h"
#include "trainer/run_directory.h"

namespace narrowgauge::trainer {

struct TrainingData {
  std::shared_ptr<const data::Tokenizer> tokenizer;  // null for data that are token ids already
  data::Split split;
  std::shared_ptr<const data::ChatTemplate> chat_template;  // null where data are no conversations
};

// What a step reads: all of the data, or with data.weights each source in its share.
data::DataLoader make_training_loader(const TrainConfig& config, const data::Split& split,
                                      int64_t global_batch_size);

// data.packing as data/ has it.
data::Packing packing_of(const TrainConfig& config);

// Opens what `config` names: the tokenizer (trained first where tokenizer.train_vocab_size asks for
// it; it then lives in <run>/tokenizer) and the token caches, which are made where they are
// missing. Rank 0 works and reports progress on standard error; the others wait and reuse its
// files. Where model.vocab_size is 0 it becomes the tokenizer's. Throws with the file and the place
// on bad input, ConfigError where the vocabulary is smaller than the tokenizer's ids.
TrainingData open_training_data(TrainConfig& config, const RunDirectory& run,
                                comm::Communicator& world);

}  // namespace narrowgauge::trainer

#pragma once

#include <memory>

#include "data/tokenizer.h"
#include "trainer/config.h"
#include "trainer/run_directory.h"

namespace narrowgauge::trainer {

// The tokenizer of a run: what section `tokenizer` names, or <run>/tokenizer where the run trains
// its own. Null for kind none.
std::shared_ptr<const data::Tokenizer> load_run_tokenizer(const TrainConfig& config,
                                                          const RunDirectory& run);

// Trains <run>/tokenizer if the run has one of its own and it is not there yet, with progress on
// standard error. One process calls.
void train_run_tokenizer(const TrainConfig& config, const RunDirectory& run);

}  // namespace narrowgauge::trainer

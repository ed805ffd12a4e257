#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/config.h"

namespace narrowgauge::trainer {

// One thing that a run needs and that can be looked at before it starts.
struct PreflightCheck {
  std::string name;  // "memory"
  bool is_met = true;
  std::string text;  // "0.54 GiB of 23.5 GiB"; with a remedy where it is not met
};

// For a run of `num_ranks` ranks, all on this machine: the model and its tokenizer can be read, the
// data are there, the ranks divide the batch, the planned memory fits, each rank has a GPU where it
// trains on one, and the disk holds the checkpoints and the exported model. `config` as read.
// Nothing is written, and no error thrown: each is a check that is not met.
std::vector<PreflightCheck> preflight(TrainConfig config, int64_t num_ranks);

}  // namespace narrowgauge::trainer

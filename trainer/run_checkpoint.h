#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "fsdp/fully_shard.h"
#include "optim/optimizer.h"

namespace narrowgauge::trainer {

// What a checkpoint holds beside tensors.
struct RunState {
  int64_t step = 0;         // steps done; the data order and the schedule follow from it
  int64_t tokens_seen = 0;  // since step 1
};

// Names in a checkpoint: model.<fqn> and optimizer.<state>.<fqn>, fp32 shards by rows.

// Every rank calls; returns when step-<state.step> is durable and `latest` names it, and older ones
// beyond keep_latest_k (0: all are kept) are gone.
void save_run(const std::filesystem::path& checkpoints, const RunState& state,
              const std::vector<fsdp::ShardedParameter>& parameters, optim::Optimizer& optimizer,
              int64_t keep_latest_k, comm::Communicator& world);

// The folder to resume from: that of `load_step`, or the newest complete one for -1. Nothing if
// there is none (a new run); throws if load_step names one that is missing.
std::optional<std::filesystem::path> find_checkpoint(const std::filesystem::path& checkpoints,
                                                     int64_t load_step);

// Fills parameters and optimizer from `checkpoint`, written at any world size.
RunState load_run(const std::filesystem::path& checkpoint,
                  const std::vector<fsdp::ShardedParameter>& parameters,
                  optim::Optimizer& optimizer);

}  // namespace narrowgauge::trainer

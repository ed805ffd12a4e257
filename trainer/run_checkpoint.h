#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/shard_plan.h"
#include "comm/communicator.h"
#include "fsdp/fully_shard.h"
#include "nn/transformer_config.h"
#include "optim/optimizer.h"
#include "trainer/config.h"
#include "trainer/step_action.h"

namespace narrowgauge::trainer {

// What a checkpoint of a run holds: rows by the names model.<parameter> and
// optimizer.<parameter>.<state>, each in the dtype that training has, the buffers of step actions
// by their own names, and these numbers.
struct RunState {
  int64_t step = 0;         // steps done; the data order and the schedule follow from it
  int64_t tokens_seen = 0;  // since step 1
  // What the data order hangs on beside the step: with another value the run would repeat some
  // windows and skip others.
  int64_t global_batch_size = 0;
  int64_t train_tokens = 0;
};

// What checkpoint::CheckpointSaver::start takes. The chunks are the run's own tensors.
struct RunSnapshot {
  int64_t step = 0;
  std::vector<checkpoint::ShardChunk> chunks;
  std::string state_json;
};

RunSnapshot snapshot_run(const RunState& state, const TrainConfig& config,
                         const std::vector<fsdp::ShardedParameter>& parameters,
                         optim::Optimizer& optimizer, const NamedBuffers& buffers);

// Deletes what killed saves left in the store; where that fails it costs a line on standard error.
// For the run that writes to the store.
void remove_leftovers(const std::filesystem::path& store);

// The folder to resume from: that of `load_step`, or for -1 the newest complete one, damaged ones
// passed over with a line on standard error, as is the one taken instead. Nothing in a new run.
// Throws if load_step is missing or all are damaged. Collective.
std::optional<std::filesystem::path> find_checkpoint(const std::filesystem::path& store,
                                                     int64_t load_step, comm::Communicator& world);

// Fills parameters, optimizer and buffers from a checkpoint of any world size. Buffers that the
// checkpoint does not hold keep their values: the run had no such conversion so far. What `config`
// and `expected` change is appended to `notes`, a line each, for people. Throws ConfigError before
// anything is filled if a change makes it another run (see check_changes), if the global batch size
// or the data are others than so far among them, and checkpoint.allow_changes does not name the
// key.
RunState load_run(const std::filesystem::path& folder, const RunState& expected,
                  const TrainConfig& config, const std::vector<fsdp::ShardedParameter>& parameters,
                  optim::Optimizer& optimizer, const NamedBuffers& buffers,
                  std::vector<std::string>& notes);

// Reads whole parameters of a checkpoint, adapters included, one at a time, on one rank.
std::function<at::Tensor(const std::string& fqn)> full_parameter_reader(
    const std::filesystem::path& folder, const nn::TransformerConfig& config);

}  // namespace narrowgauge::trainer

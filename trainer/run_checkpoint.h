#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "fsdp/fully_shard.h"
#include "nn/transformer_config.h"
#include "optim/optimizer.h"
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

// Returns when step-<state.step> is durable and `latest` names it; older ones beyond keep_latest_k
// are gone then (0 keeps all). Collective; throws on every rank if one fails, with older
// checkpoints untouched.
void save_run(const std::filesystem::path& store, const RunState& state,
              const std::vector<fsdp::ShardedParameter>& parameters, optim::Optimizer& optimizer,
              const NamedBuffers& buffers, int64_t keep_latest_k, comm::Communicator& world);

// The folder to resume from: that of `load_step`, or for -1 the newest complete one, damaged ones
// passed over with a line on standard error. Nothing in a new run. Throws if load_step is missing
// or all are damaged. Collective.
std::optional<std::filesystem::path> find_checkpoint(const std::filesystem::path& store,
                                                     int64_t load_step, comm::Communicator& world);

// Fills parameters, optimizer and buffers from a checkpoint of any world size. Buffers that the
// checkpoint does not hold keep their values: the run had no such conversion so far. Throws
// ConfigError if `expected` has another global batch size or other data than the run so far.
RunState load_run(const std::filesystem::path& folder, const RunState& expected,
                  const std::vector<fsdp::ShardedParameter>& parameters,
                  optim::Optimizer& optimizer, const NamedBuffers& buffers);

// Reads whole parameters of a checkpoint, one at a time, on one rank.
std::function<at::Tensor(const std::string& fqn)> full_parameter_reader(
    const std::filesystem::path& folder, const nn::TransformerConfig& config);

}  // namespace narrowgauge::trainer

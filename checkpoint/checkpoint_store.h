#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/sharded_checkpoint.h"

// Note: the store
//
//   STORE/step-00000100/   a checkpoint; see sharded_checkpoint.h
//   STORE/latest           "step-00000100"
//
// A checkpoint is written as step-00000100.tmp and renamed when every byte is on the disk, so a
// folder without .tmp is complete. One run writes to a store at a time; anybody may read it.

namespace narrowgauge::checkpoint {

// Writes STORE/step-NNNNNNNN with write_sharded_checkpoint and points `latest` at it. Collective.
// A checkpoint of the same step is replaced. Where it throws, on every rank, nothing partial stays
// and older checkpoints are untouched.
void save_checkpoint(const std::filesystem::path& store, int64_t step,
                     std::span<const ShardChunk> chunks, const std::string& state_json,
                     comm::Communicator& communicator);

struct LatestCheckpoint {
  std::optional<std::filesystem::path> folder;  // verified; none where there is no good one
  std::vector<std::string> warnings;            // one for each damaged checkpoint passed over
};

// The checkpoint that `latest` names if its hashes match, otherwise the newest other that does.
// No folder but warnings means that all are damaged: starting anew would be a mistake.
LatestCheckpoint find_latest_checkpoint(const std::filesystem::path& store);

// The same, collective: rank 0 looks and all get its answer.
LatestCheckpoint find_latest_checkpoint(const std::filesystem::path& store,
                                        comm::Communicator& communicator);

// Deletes all but the newest `keep_latest_k` checkpoints and the one `latest` names; 0 keeps all.
// Deletes nothing unless one of those kept is structurally sound. Returns what was deleted. Call
// it on one rank.
std::vector<std::filesystem::path> prune_checkpoints(const std::filesystem::path& store,
                                                     int64_t keep_latest_k);

}  // namespace narrowgauge::checkpoint

#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/shard_plan.h"
#include "comm/communicator.h"

namespace narrowgauge::checkpoint {

// How a save ended, and whether well: the same on every rank.
struct SaveOutcome {
  int64_t step = 0;
  // Empty: the checkpoint is complete and `latest` names it. Else the reason, of a rank that failed
  // its own, elsewhere with the number of the lowest that did.
  std::string error;
  uint64_t size_bytes = 0;            // of all tensors
  double seconds = 0;                 // from start() to the end
  double staging_seconds = 0;         // that start() took, this rank's
  std::vector<std::string> warnings;  // about older checkpoints that could not be deleted; rank 0's
};

// Saves checkpoints of one run, one at a time, beside its training.
//
// Note: who does what. start() copies what this rank writes (or takes it as it is) and a thread of
// its own writes it; the thread calls no communicator. That all ranks are done, or one has failed,
// they learn from each other in poll(), a collective of a few bytes that the training loop calls
// between steps, when no other collective is under way. Then rank 0's thread writes the manifest,
// renames, points `latest` at the new checkpoint and deletes old ones. So no collective waits for a
// disk, however slow, and a checkpoint becomes visible at the first or second poll() after the
// slowest rank's file is on the disk.
//
// All methods are collective unless they say otherwise.
class CheckpointSaver {
 public:
  enum class Staging {
    kCopy,    // start() returns when the tensors may change
    kInPlace  // they must not change until there is an outcome
  };

  // `communicator` moves CPU tensors. keep_latest_k: see prune_checkpoints.
  CheckpointSaver(std::filesystem::path store, int64_t keep_latest_k,
                  comm::Communicator& communicator);
  // Not collective. Alone (a world of one) it finishes the save under way; of several ranks it
  // cancels it, since this one may be the only rank to end: leftovers are deleted by the next save.
  ~CheckpointSaver();
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;

  // Begins to save what all ranks hold as `step`. state_json is an object, taken from rank 0.
  // What the disk does wrong is told by the outcome; throws, on every rank, for chunks that do not
  // fit together. REQUIRES: !is_busy().
  void start(int64_t step, std::span<const ShardChunk> chunks, const std::string& state_json,
             Staging staging);

  // Takes the save under way a step on, without waiting for a disk. Its outcome, once.
  std::optional<SaveOutcome> poll();

  // Polls until there is an outcome; nothing where no save is under way. `progress` is told
  // fraction_done() meanwhile.
  std::optional<SaveOutcome> wait(const std::function<void(double fraction)>& progress = {});

  // Between start() and the outcome. Not collective, but the same on every rank.
  bool is_busy() const { return save_ != nullptr; }
  int64_t step_under_way() const;  // REQUIRES: is_busy()
  // Of this rank's part, how much is written. Not collective; 1 where nothing is under way.
  double fraction_done() const;

 private:
  struct Save;

  std::string write(Save& save) const;
  std::string commit(const Save& save) const;
  bool all_jobs_done();
  void await_job(std::chrono::milliseconds pause) const;
  SaveOutcome end(std::string error);

  std::filesystem::path store_;
  int64_t keep_latest_k_;
  comm::Communicator& communicator_;
  ShardPlanner planner_;
  std::vector<at::Tensor> staged_;  // kept from save to save: their pages are there already
  std::unique_ptr<Save> save_;
};

// A save from start to end. Throws std::runtime_error on every rank where it fails; nothing partial
// stays then, and older checkpoints are untouched.
void save_checkpoint(const std::filesystem::path& store, int64_t step,
                     std::span<const ShardChunk> chunks, const std::string& state_json,
                     comm::Communicator& communicator);

}  // namespace narrowgauge::checkpoint

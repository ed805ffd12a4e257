#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

// Note: the store
//
//   STORE/step-00000100/       a checkpoint; see sharded_checkpoint.h
//   STORE/step-00000200.tmp/   one that is being written, or whose writer was killed
//   STORE/latest               "step-00000100"
//
// Order: step-N.tmp/ with its files, each on the disk before the next step: the ranks' files, the
// manifest, the folder; then the rename to step-N and the store's own entry; then `latest`. So a
// folder without .tmp is complete, and a crash at any moment leaves every older one as it was. One
// run writes to a store at a time; anybody may read it. No torch.

namespace narrowgauge::checkpoint {

// "step-00000100"
std::string step_name(int64_t step);

// Complete checkpoints in the order in which a run would take them: the one that `latest` names,
// those of earlier steps, newest first, then those of later steps, which a run that went back to an
// earlier one has left behind. Empty where there is no store.
std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& store);

// What `latest` names, if that is there.
std::optional<std::filesystem::path> read_latest(const std::filesystem::path& store);

// Folders of saves and deletions that were killed.
std::vector<std::filesystem::path> list_leftovers(const std::filesystem::path& store);

// Makes an empty STORE/step-N.tmp, the store with it, and returns it. What an earlier save of this
// step left is deleted. Throws std::runtime_error, as the functions below.
std::filesystem::path prepare_checkpoint(const std::filesystem::path& store, int64_t step);

// step-N.tmp, complete, becomes step-N, in place of one that was there, and `latest` names it.
void commit_checkpoint(const std::filesystem::path& store, int64_t step);

// Deletes leftovers, and puts back a checkpoint whose replacement was cut short. For the run that
// writes to the store.
void remove_leftovers(const std::filesystem::path& store);

// What prune_checkpoints would delete: all but the first `keep_latest_k` of list_checkpoints; 0
// keeps all. Nothing unless one of those kept is structurally sound.
std::vector<std::filesystem::path> prunable_checkpoints(const std::filesystem::path& store,
                                                        int64_t keep_latest_k);

// Deletes and returns them.
std::vector<std::filesystem::path> prune_checkpoints(const std::filesystem::path& store,
                                                     int64_t keep_latest_k);

}  // namespace narrowgauge::checkpoint

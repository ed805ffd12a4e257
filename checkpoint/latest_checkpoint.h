#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace narrowgauge::checkpoint {

struct LatestCheckpoint {
  std::optional<std::filesystem::path> folder;  // verified; none where there is no good one
  std::vector<std::string> warnings;            // one for each damaged checkpoint passed over
};

// The first of list_checkpoints whose every byte is as it was written. The ranks share the reading;
// all get the same folder, and rank 0's warnings are the ones to print. No folder but warnings
// means that all are damaged: starting anew would be a mistake. Collective.
//
// `progress` is told how much of a checkpoint this rank has read, of its part: 0 to 1.
LatestCheckpoint find_latest_checkpoint(
    const std::filesystem::path& store, comm::Communicator& communicator,
    const std::function<void(const std::string& checkpoint, double fraction)>& progress = {});

}  // namespace narrowgauge::checkpoint

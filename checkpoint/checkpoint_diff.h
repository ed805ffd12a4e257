#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_reader.h"

namespace narrowgauge::checkpoint {

// How one tensor, or one value of the trainer's state, differs.
struct CheckpointDifference {
  std::string name;  // of a value of the state "state.step"
  std::string
      text;  // "only in the first", "F32 [4, 4] against BF16 [4, 4]", "3 of 16 elements ..."
};

// Everything that two checkpoints do not have in common, whatever ranks wrote them: tensors are
// compared as wholes, byte by byte, and where they differ by element. Empty: they hold the same.
// Bytes of equal hash and rows count as equal without being read. Throws std::runtime_error for
// damage. No torch.
std::vector<CheckpointDifference> diff_checkpoints(CheckpointReader& a, CheckpointReader& b,
                                                   const CheckpointReader::Progress& progress = {});

}  // namespace narrowgauge::checkpoint

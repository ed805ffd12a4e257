#pragma once

#include "trainer/command_line.h"

namespace narrowgauge::trainer {

// `narrowgauge prune`: writes a model directory with zeros in the linears of its blocks. Returns
// the exit code; throws UsageError, std::runtime_error (disk, damaged model) or c10::Error (a
// pattern that fits no linear).
int prune_command(const PruneOptions& options);

}  // namespace narrowgauge::trainer

#pragma once

#include "trainer/command_line.h"

namespace narrowgauge::trainer {

// narrowgauge checkpoint list | verify | diff | export | prune. Each returns the exit code and
// throws UsageError for a path that is neither a run nor a checkpoint, std::runtime_error for
// damage that it is not there to report. None of them loads torch.

int list_command(const CheckpointListOptions& options);

// kExitFailure if anything is damaged or nothing is there.
int verify_command(const CheckpointVerifyOptions& options);

// kExitFailure if they differ.
int diff_command(const CheckpointDiffOptions& options);

int export_whole_command(const CheckpointExportOptions& options);

// Throws std::runtime_error where a process trains in the run.
int prune_command(const CheckpointPruneOptions& options);

}  // namespace narrowgauge::trainer

#pragma once

#include <cstdint>
#include <exception>
#include <string>

#include "trainer/config.h"
#include "trainer/config_check.h"
#include "trainer/run_directory.h"

namespace narrowgauge::trainer {

struct MeasuredRun {
  double step_seconds = 0;  // mean; 0: too few steps to tell
  int64_t peak_memory_bytes = 0;
};

// What a run leaves when it ends, well or stopped by a signal: its figures beside the planned ones
// on standard error, and <run>/report.html. What goes wrong here costs a line, not the run's
// success.
void end_run(const TrainConfig& config, const RankPlan& ranks, const RunDirectory& run,
             const MeasuredRun& measured);

// For an error that says that memory ran out: its first line, followed by the table of memory as
// planned and by what would fit. Empty for any other error.
std::string explain_memory_shortage(const std::exception& error, const TrainConfig& config,
                                    const RankPlan& ranks);

}  // namespace narrowgauge::trainer

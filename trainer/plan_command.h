#pragma once

#include "trainer/command_line.h"

namespace narrowgauge::trainer {

// narrowgauge plan: what the run of a configuration would need and how fast it would be. Returns
// the exit code: 0 where it fits or that is unknown, 1 where it does not.
int plan_command(const PlanOptions& options);

}  // namespace narrowgauge::trainer

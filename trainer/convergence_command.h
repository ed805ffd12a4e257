#pragma once

#include "trainer/command_line.h"

namespace narrowgauge::trainer {

// narrowgauge bench convergence: trains one configuration in the variants of a family with several
// seeds and compares their final validation losses. Prints the table, and writes it with the plots
// into the output folder. Returns the exit code; kExitStopped where a signal ended it, to go on
// from there.
int convergence_command(const ConvergenceOptions& options);

}  // namespace narrowgauge::trainer

#pragma once

#include "trainer/command_line.h"

namespace narrowgauge::trainer {

// narrowgauge bench: how fast steps of a configuration are in several modes. Each mode trains in
// processes of its own, in turn with the others. Prints the table; a line for each process goes to
// standard error. With --profile: where the time of a step goes. Returns the exit code.
int bench_command(const BenchOptions& options);

}  // namespace narrowgauge::trainer

#pragma once

#include "trainer/command_line.h"

namespace narrowgauge::trainer {

// narrowgauge generate: prints the continuation of a prompt on standard output, token by token (or
// one JSON object with --json). Returns the exit code; throws what main reports.
int generate_command(const GenerateOptions& options);

}  // namespace narrowgauge::trainer

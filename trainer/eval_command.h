#pragma once

#include "trainer/command_line.h"

namespace narrowgauge::trainer {

// narrowgauge eval: scores a model on text and tasks and compares it with others. Prints a table of
// each result or, with --json, one JSON object a line. Returns the exit code; throws what main
// reports.
int eval_command(const EvalOptions& options);

}  // namespace narrowgauge::trainer

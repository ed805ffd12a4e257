#pragma once

#include "trainer/command_line.h"

namespace narrowgauge::trainer {

// narrowgauge eval: scores a model on text and prints loss and perplexities, as a table or, with
// --json, as one JSON object. Returns the exit code; throws what main reports.
int eval_command(const EvalOptions& options);

}  // namespace narrowgauge::trainer

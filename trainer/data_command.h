#pragma once

#include "trainer/command_line.h"

namespace narrowgauge::trainer {

// narrowgauge data prepare | inspect. Each returns kExitDone and throws std::runtime_error or
// std::invalid_argument with what is wrong.

// Tokenizes text into a cache ahead of a run, with progress on standard error.
int prepare_data(const DataPrepareOptions& options);

// Prints what a cache or a .bin file of token ids holds.
int inspect_data(const DataInspectOptions& options);

}  // namespace narrowgauge::trainer

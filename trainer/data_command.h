#pragma once

#include <span>
#include <string>

namespace narrowgauge::trainer {

// narrowgauge data prepare | inspect: tokenizes text into a cache ahead of a run, with progress on
// standard error, and prints what a cache or a .bin file of token ids holds. `arguments` are those
// after "data". Errors go to standard error; returns the exit code: 0 done, 1 failure, 2 bad
// arguments.
int data_command(std::span<const std::string> arguments);

}  // namespace narrowgauge::trainer

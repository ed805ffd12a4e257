#pragma once

#include <stdexcept>

namespace narrowgauge::trainer {

// Arguments that make no sense; what() says what was expected. Programs end with kExitUsage.
struct UsageError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

}  // namespace narrowgauge::trainer

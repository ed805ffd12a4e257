#pragma once

#include <optional>
#include <string>

namespace narrowgauge::trainer {

// Turns SIGTERM, SIGINT and SIGUSR1 into a request that the training loop reads between steps.
// While one lives, a first signal only sets the request; a second SIGINT ends the process at once
// (an impatient Ctrl-C). At most one may live in a process: signals belong to the process.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // The signal's name ("SIGTERM") once one has arrived.
  std::optional<std::string> received() const;
};

}  // namespace narrowgauge::trainer

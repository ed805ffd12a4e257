#include "trainer/stop_signal.h"

#include <array>
#include <atomic>
#include <csignal>

namespace narrowgauge::trainer {
namespace {

struct NamedSignal {
  int number;
  const char* name;
};
constexpr std::array<NamedSignal, 3> kSignals = {
    {{SIGTERM, "SIGTERM"}, {SIGINT, "SIGINT"}, {SIGUSR1, "SIGUSR1"}}};

// A signal handler can reach nothing but process-wide state; a lock-free atomic is what it may
// write.
std::atomic<int> received_number{0};
static_assert(std::atomic<int>::is_always_lock_free);

void on_signal(int number) {
  if (number == SIGINT && received_number.load() == SIGINT) {
    std::signal(SIGINT, SIG_DFL);
    std::raise(SIGINT);
  }
  received_number.store(number);
}

}  // namespace

StopSignal::StopSignal() {
  received_number.store(0);
  for (const NamedSignal& entry : kSignals) {
    std::signal(entry.number, on_signal);
  }
}

StopSignal::~StopSignal() {
  for (const NamedSignal& entry : kSignals) {
    // The run is at its end: a late signal must not change its exit code.
    std::signal(entry.number, SIG_IGN);
  }
}

std::optional<std::string> StopSignal::received() const {
  const int number = received_number.load();
  for (const NamedSignal& entry : kSignals) {
    if (entry.number == number) {
      return entry.name;
    }
  }
  return std::nullopt;
}

}  // namespace narrowgauge::trainer

#include "comm/mpi_wait.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>

namespace narrowgauge::comm {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// How long to look without a sleep: what arrives at once (a small message between ranks that are in
// step) is not worth one. Figures behind these three: docs/LOG.md.
constexpr microseconds kPatience{50};
constexpr microseconds kShortestSleep{20};
constexpr microseconds kLongestSleep{200};

// Pauses between looks that grow with the time waited.
class Backoff {
 public:
  void pause() {
    if (Clock::now() - began_ < kPatience) {
      sched_yield();
      return;
    }
    std::this_thread::sleep_for(sleep_);
    sleep_ = std::min(sleep_ * 5 / 4, kLongestSleep);
  }

 private:
  Clock::time_point began_ = Clock::now();
  microseconds sleep_ = kShortestSleep;
};

}  // namespace

void check_mpi(int code, const char* call) {
  if (code != MPI_SUCCESS) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(code, text, &length);
    throw std::runtime_error(std::string(call) + " failed: " + std::string(text, length));
  }
}

void wait_all(std::vector<MPI_Request>& requests) {
  Backoff backoff;
  while (true) {
    int complete = 0;
    check_mpi(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &complete,
                          MPI_STATUSES_IGNORE),
              "MPI_Testall");
    if (complete != 0) {
      requests.clear();
      return;
    }
    backoff.pause();
  }
}

}  // namespace narrowgauge::comm

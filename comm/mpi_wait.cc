#include "comm/mpi_wait.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>

namespace narrowgauge::comm {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// How long to look without a sleep: ranks that are in step need no more. Then the pauses grow,
// which bounds both the time lost after a long wait and the share of a core spent on it. A sleeping
// thread gets its core back at once when it wakes; one that yields waits for the computation's
// whole time slice. Figures: docs/LOG.md.
constexpr microseconds kPatience{30};
constexpr microseconds kShortestSleep{20};
constexpr microseconds kLongestSleep{200};

}  // namespace

void check_mpi(int code, const char* call) {
  if (code != MPI_SUCCESS) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(code, text, &length);
    throw std::runtime_error(std::string(call) + " failed: " + std::string(text, length));
  }
}

void wait(MPI_Request& request) {
  const Clock::time_point began = Clock::now();
  microseconds sleep = kShortestSleep;
  while (true) {
    int complete = 0;
    check_mpi(MPI_Test(&request, &complete, MPI_STATUS_IGNORE), "MPI_Test");
    if (complete != 0) {
      return;
    }
    if (Clock::now() - began > kPatience) {
      std::this_thread::sleep_for(sleep);
      sleep = std::min(sleep * 5 / 4, kLongestSleep);
    }
  }
}

}  // namespace narrowgauge::comm

#include "tests/support/run_ranks.h"

#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "comm/thread_communicator.h"

namespace narrowgauge::testing {
namespace {

// The text of the exception being handled.
std::string current_message() {
  try {
    throw;
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "an exception that is no std::exception";
  }
}

}  // namespace

void run_ranks_shared(int size,
                      const std::function<void(std::shared_ptr<comm::Communicator>)>& body) {
  const auto communicators = comm::ThreadCommunicator::create(size);
  std::mutex mutex;
  std::exception_ptr first;
  std::vector<std::thread> threads;
  for (const auto& communicator : communicators) {
    threads.emplace_back([&, communicator] {
      try {
        body(communicator);
      } catch (...) {
        // Kept before the others are woken, so that what they throw is never the first.
        {
          const std::lock_guard lock(mutex);
          if (!first) {
            first = std::current_exception();
          }
        }
        communicator->abort(current_message());
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  if (first) {
    std::rethrow_exception(first);
  }
}

void run_ranks(int size, const std::function<void(comm::Communicator&)>& body) {
  run_ranks_shared(size,
                   [&](std::shared_ptr<comm::Communicator> communicator) { body(*communicator); });
}

}  // namespace narrowgauge::testing

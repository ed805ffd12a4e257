// A program one or all of whose ranks fail; mpi_failure_test.sh watches how it ends.
//   failing_rank RANK [watched]
// Rank RANK throws while the others wait in a collective; -1: all throw.

#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>

#include "comm/mpi_session.h"

int main(int argc, char** argv) {
  namespace comm = narrowgauge::comm;
  const int failing = argc > 1 ? std::atoi(argv[1]) : 0;
  comm::MpiSession session;
  try {
    if (argc > 2) {
      session.watch({});
    }
    const auto world = session.world();
    comm::barrier(*world);
    if (failing == -1 || failing == world->rank()) {
      throw std::runtime_error("the first cause");
    }
    comm::barrier(*world);
    comm::barrier(*world);
  } catch (const std::exception& error) {
    return session.fail(error.what(), 3);
  }
  return 0;
}

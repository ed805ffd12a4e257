#pragma once

#include <vector>

#include "comm/communicator.h"

namespace narrowgauge::comm {

// What every Communicator must do, for any number of ranks: run by thread_communicator_test over
// threads and by mpi_communicator_test under mpirun. Each rank calls `run`; it fails the running
// gtest. Expected values are computed from what all ranks are known to hold, summed in rank order,
// and compared bit for bit, so implementations that pass agree bit for bit.
struct CommunicatorCase {
  const char* name;
  void (*run)(Communicator& communicator);
};
const std::vector<CommunicatorCase>& communicator_cases();

}  // namespace narrowgauge::comm

#pragma once

#include <functional>
#include <memory>

#include "comm/communicator.h"

namespace narrowgauge::testing {

// Runs `body` on `size` ranks, a thread each, and returns when all have ended. The first exception
// aborts the other ranks and is rethrown as it was.
void run_ranks(int size, const std::function<void(comm::Communicator&)>& body);

// The same for bodies that keep their communicator (a DeviceMesh does).
void run_ranks_shared(int size,
                      const std::function<void(std::shared_ptr<comm::Communicator>)>& body);

}  // namespace narrowgauge::testing

// Ranks that exchange tensors until they are stopped or killed; mpi_watchdog_test.py does that.
//   endless_ranks TIMEOUT_MS DIRECTORY
// Rank N writes its process into DIRECTORY/process-N once all ranks are in step. As in training, a
// SIGTERM asks the loop to end and does not end the process.

#include <ATen/ops/zeros.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "comm/device_mesh.h"
#include "comm/mpi_session.h"

namespace {

namespace comm = narrowgauge::comm;

void exchange_for_ever(comm::MpiSession& session, const std::filesystem::path& directory) {
  const auto world = session.world();
  const comm::DeviceMesh mesh(world, 2, world->size() / 2);
  for (int step = 0;; ++step) {
    mesh.shard_axis().all_gather(at::zeros({2 * mesh.shard_axis().size()}), at::zeros({2}));
    comm::barrier(*world);
    if (step == 100) {
      std::ofstream(directory / ("process-" + std::to_string(world->rank()))) << getpid() << '\n';
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    return 2;
  }
  std::signal(SIGTERM, [](int) {});
  comm::MpiSession session;
  try {
    const std::filesystem::path directory = argv[2];
    session.watch({std::chrono::milliseconds(std::atoi(argv[1])), directory / "flight_record"});
    exchange_for_ever(session, directory);
  } catch (const std::exception& error) {
    return session.fail(error.what(), 3);
  }
}

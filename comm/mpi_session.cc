#include "comm/mpi_session.h"

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <thread>

#include "comm/mpi_communicator.h"
#include "comm/thread_communicator.h"

namespace narrowgauge::comm {
namespace {

// Set by Open MPI's mpirun, by MPICH's and Slurm's (PMI), and by PMIx launchers.
bool started_by_launcher() {
  return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMI_RANK") != nullptr ||
         std::getenv("PMIX_RANK") != nullptr;
}

}  // namespace

MpiSession::MpiSession()
    : under_launcher_(started_by_launcher()), exceptions_at_birth_(std::uncaught_exceptions()) {
  if (!under_launcher_) {
    return;
  }
  int provided = MPI_THREAD_SINGLE;
  if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided) != MPI_SUCCESS) {
    throw std::runtime_error(
        "MPI_Init_thread failed; is the program linked with the launcher's MPI?");
  }
  if (provided < MPI_THREAD_SERIALIZED) {
    throw std::runtime_error(
        "expected MPI with thread support of at least MPI_THREAD_SERIALIZED (" +
        std::to_string(MPI_THREAD_SERIALIZED) + "), got " + std::to_string(provided) +
        "; install an MPI built with threads");
  }
  MPI_Comm_rank(MPI_COMM_WORLD, &world_rank_);
  MPI_Comm host = MPI_COMM_NULL;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, world_rank_, MPI_INFO_NULL, &host);
  MPI_Comm_rank(host, &local_rank_);
  MPI_Comm_size(host, &local_size_);
  MPI_Comm_free(&host);
}

MpiSession::~MpiSession() {
  if (under_launcher_ && std::uncaught_exceptions() == exceptions_at_birth_) {
    MPI_Finalize();
  }
}

std::shared_ptr<Communicator> MpiSession::world() {
  if (!under_launcher_) {
    return ThreadCommunicator::single();
  }
  return std::make_shared<MpiCommunicator>(MPI_COMM_WORLD);
}

int MpiSession::fail(const std::string& message, int exit_code) {
  if (under_launcher_) {
    // A fault that all ranks share (a bad configuration) is rank 0's to tell: its abort ends the
    // others in this time. A fault of one rank alone is told a little later.
    std::this_thread::sleep_for(std::chrono::milliseconds(std::min(500 * world_rank_, 1000)));
  }
  std::fflush(stdout);
  std::fprintf(stderr, "%s\n", message.c_str());
  std::fflush(stderr);
  if (under_launcher_) {
    MPI_Abort(MPI_COMM_WORLD, exit_code);
  }
  return exit_code;
}

}  // namespace narrowgauge::comm

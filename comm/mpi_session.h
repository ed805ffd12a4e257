#pragma once

#include <memory>
#include <string>

#include "comm/communicator.h"

namespace narrowgauge::comm {

// MPI's life in this process: make one at the start of main and let it outlive every communicator.
//
//   int main() {
//     comm::MpiSession session;
//     try { return run(session.world()); }
//     catch (const std::exception& error) { return session.fail(error.what()); }
//   }
//
// A process that no launcher started (mpirun, srun) never calls MPI and has a world of one.
class MpiSession {
 public:
  // Initialises MPI under a launcher. Throws std::runtime_error.
  MpiSession();
  // Finalises MPI, which waits for all ranks; not while an exception unwinds.
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  bool under_launcher() const { return under_launcher_; }

  // All ranks. REQUIRES: released before this session ends.
  std::shared_ptr<Communicator> world();

  // Ranks of this host: which of how many.
  int local_rank() const { return local_rank_; }
  int local_size() const { return local_size_; }

  // Reports that this rank failed, and ends the job: prints `message` as a line on standard error,
  // then aborts all ranks with `exit_code` (> 0). When every rank fails for the same reason, the
  // lowest one speaks and the others end silently. Without a launcher it prints and returns
  // `exit_code`, for main to return.
  int fail(const std::string& message, int exit_code = 1);

 private:
  bool under_launcher_;
  int world_rank_ = 0;
  int local_rank_ = 0;
  int local_size_ = 1;
  int exceptions_at_birth_;
};

}  // namespace narrowgauge::comm

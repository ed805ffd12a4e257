#pragma once

#include <c10/core/Device.h>

#include <chrono>
#include <memory>
#include <string>

#include "comm/communicator.h"
#include "comm/watchdog.h"

namespace narrowgauge::comm {

class RankBoardServer;

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
  // Finalises MPI, which waits for all ranks (a rank may write files for long, so without the
  // timeout of watch(); a rank that dies still ends it). Not while an exception unwinds.
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  bool under_launcher() const { return under_launcher_; }

  // From now on communicators of this session are watched: a collective past its timeout and a rank
  // that dies end the job with exit code 1 and a sentence that names them, and every failure leaves
  // a flight record. Collective; at most once, before world(). Throws std::runtime_error when the
  // ranks cannot reach rank 0 over TCP.
  void watch(const WatchdogOptions& options);

  // Of collectives from now on, where they are watched: the first step takes longer than the
  // others.
  void set_timeout(std::chrono::milliseconds timeout);

  // All ranks, for tensors of the CPU, over MPI, and where `device` is a CUDA device for its
  // tensors, too, over NCCL. No two ranks have the same device. A process on its own needs neither
  // MPI nor NCCL. Collective. REQUIRES: released before this session ends.
  std::shared_ptr<Communicator> world(c10::Device device = c10::kCPU);

  // Ranks of this host: which of how many.
  int local_rank() const { return local_rank_; }
  int local_size() const { return local_size_; }

  // Reports that this rank failed, and ends the job: prints `message` as a line on standard error,
  // then aborts all ranks with `exit_code` (> 0). When every rank fails for the same reason, the
  // lowest one speaks and the others end silently. Without a launcher it prints and returns
  // `exit_code`, for main to return.
  int fail(const std::string& message, int exit_code = 1);

 private:
  std::shared_ptr<Communicator> unwatched_world(c10::Device device);
  // Prints `message`, unless another rank tells the cause and ends this one meanwhile.
  void tell(const std::string& message, Teller teller) const;
  // What the watchdog does with its findings, on its own thread.
  [[noreturn]] void end_job(const std::string& message, Teller teller) const;

  bool under_launcher_;
  int world_rank_ = 0;
  int world_size_ = 1;
  int local_rank_ = 0;
  int local_size_ = 1;
  int exceptions_at_birth_;
  int worlds_ = 0;
  // In the order of their making; nothing before watch().
  std::unique_ptr<RankBoardServer> board_server_;  // on rank 0
  std::shared_ptr<RankBoard> board_;
  std::shared_ptr<FlightRecord> flight_record_;
  std::unique_ptr<Watchdog> watchdog_;
};

}  // namespace narrowgauge::comm

#include "comm/mpi_session.h"

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <thread>
#include <utility>

#include "comm/mpi_communicator.h"
#include "comm/nccl_communicator.h"
#include "comm/per_device_communicator.h"
#include "comm/rank_board_server.h"
#include "comm/rank_table.h"
#include "comm/self_communicator.h"
#include "comm/tcp_rank_board.h"
#include "comm/watched_communicator.h"

namespace narrowgauge::comm {
namespace {

// Set by Open MPI's mpirun, by MPICH's and Slurm's (PMI), and by PMIx launchers.
bool started_by_launcher() {
  return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMI_RANK") != nullptr ||
         std::getenv("PMIX_RANK") != nullptr;
}

// rank 0's text, on every rank.
std::string broadcast_text(std::string text) {
  auto size = static_cast<int>(text.size());
  MPI_Bcast(&size, 1, MPI_INT, 0, MPI_COMM_WORLD);
  text.resize(size);
  MPI_Bcast(text.data(), size, MPI_CHAR, 0, MPI_COMM_WORLD);
  return text;
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
  // A ThreadStream's collectives go on beside those of its owner.
  if (provided < MPI_THREAD_MULTIPLE) {
    throw std::runtime_error("expected MPI with MPI_THREAD_MULTIPLE (" +
                             std::to_string(MPI_THREAD_MULTIPLE) + "), got " +
                             std::to_string(provided) + "; install an MPI built with threads");
  }
  MPI_Comm_rank(MPI_COMM_WORLD, &world_rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &world_size_);
  MPI_Comm host = MPI_COMM_NULL;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, world_rank_, MPI_INFO_NULL, &host);
  MPI_Comm_rank(host, &local_rank_);
  MPI_Comm_size(host, &local_size_);
  MPI_Comm_free(&host);
}

MpiSession::~MpiSession() {
  if (std::uncaught_exceptions() != exceptions_at_birth_) {
    if (watchdog_ != nullptr) {
      watchdog_->fail("an exception ends the process");
    }
    return;
  }
  if (under_launcher_) {
    MPI_Finalize();
  }
}

void MpiSession::watch(const WatchdogOptions& options) {
  if (under_launcher_) {
    if (world_rank_ == 0) {
      board_server_ = std::make_unique<RankBoardServer>(world_size_);
    }
    const std::string address =
        broadcast_text(world_rank_ == 0 ? encode(board_server_->address()) : "");
    board_ = std::make_shared<TcpRankBoard>(decode_address(address), world_rank_, world_size_);
  } else {
    board_ = std::make_shared<ThreadRankBoard>(std::make_shared<RankTable>(1), 0);
  }
  flight_record_ = std::make_shared<FlightRecord>(options.record_capacity);
  watchdog_ = std::make_unique<Watchdog>(
      world_rank_, world_size_, options, flight_record_, board_,
      [this](const std::string& message, Teller teller) { end_job(message, teller); });
}

void MpiSession::set_timeout(std::chrono::milliseconds timeout) {
  if (watchdog_ != nullptr) {
    watchdog_->set_timeout(timeout);
  }
}

std::shared_ptr<Communicator> MpiSession::unwatched_world(c10::Device device) {
  if (!under_launcher_) {
    return std::make_shared<SelfCommunicator>();
  }
  auto mpi = std::make_shared<MpiCommunicator>(MPI_COMM_WORLD);
  if (device.is_cpu()) {
    return mpi;
  }
  auto nccl = NcclCommunicator::create(*mpi, device);
  if (watchdog_ != nullptr) {
    watchdog_->add_probe([weak = std::weak_ptr(nccl)] {
      const auto alive = weak.lock();
      return alive == nullptr ? std::nullopt : alive->error();
    });
  }
  return std::make_shared<PerDeviceCommunicator>(std::move(mpi), std::move(nccl));
}

std::shared_ptr<Communicator> MpiSession::world(c10::Device device) {
  if (watchdog_ == nullptr) {
    return unwatched_world(device);
  }
  const std::string id = "world" + (worlds_ == 0 ? "" : "-" + std::to_string(worlds_));
  ++worlds_;
  // Making it waits for all ranks, as a collective does.
  flight_record_->name_group(id, id, world_size_);
  const int64_t ticket = flight_record_->start(id, "init", c10::ScalarType::Byte, 0);
  std::shared_ptr<Communicator> world;
  try {
    world = unwatched_world(device);
  } catch (...) {
    flight_record_->finish(ticket);  // no rank waits in it any more
    throw;
  }
  flight_record_->finish(ticket);
  return std::make_shared<WatchedCommunicator>(std::move(world), flight_record_, id, id);
}

void MpiSession::tell(const std::string& message, Teller teller) const {
  using std::chrono::milliseconds;
  if (under_launcher_ && teller == Teller::kAnotherRank) {
    std::this_thread::sleep_for(milliseconds(5000));
  } else if (under_launcher_ && teller == Teller::kUnknown) {
    // A fault that all ranks share (a bad configuration) is rank 0's to tell: its abort ends the
    // others in this time. A fault of one rank alone, or one of rank 0, is told a little later.
    std::this_thread::sleep_for(milliseconds(world_rank_ < 2 ? 500 * world_rank_ : 2500));
  }
  std::fflush(stdout);
  std::fprintf(stderr, "%s\n", message.c_str());
  std::fflush(stderr);
}

int MpiSession::fail(const std::string& message, int exit_code) {
  tell(message, watchdog_ == nullptr ? Teller::kUnknown : watchdog_->fail(message));
  if (under_launcher_) {
    MPI_Abort(MPI_COMM_WORLD, exit_code);
  }
  return exit_code;
}

void MpiSession::end_job(const std::string& message, Teller teller) const {
  tell(message, teller);
  if (under_launcher_) {
    // The main thread may be deep in MPI and hold what MPI_Abort wants. A process that ends like
    // this ends the job just as well; only the launcher's report is longer.
    std::thread([] {
      std::this_thread::sleep_for(std::chrono::seconds(1));
      std::_Exit(1);
    }).detach();
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  std::_Exit(1);
}

}  // namespace narrowgauge::comm

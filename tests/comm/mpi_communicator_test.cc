// Runs the cases of communicator_cases.h on MPI ranks; started by mpirun_test.sh.

#include "comm/mpi_communicator.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <string>

#include "comm/mpi_session.h"
#include "tests/comm/communicator_cases.h"

namespace narrowgauge::comm {
namespace {

// 1 KiB: nearly every large transfer goes in pieces, as one above 2 GiB would.
class MpiCommunicatorSuite
    : public ::testing::TestWithParam<std::tuple<int64_t, CommunicatorCase>> {};

TEST_P(MpiCommunicatorSuite, Case) {
  MpiCommunicator communicator(MPI_COMM_WORLD, std::get<int64_t>(GetParam()));
  std::get<CommunicatorCase>(GetParam()).run(communicator);
}

INSTANTIATE_TEST_SUITE_P(MessageLimit, MpiCommunicatorSuite,
                         ::testing::Combine(::testing::Values(int64_t{1024},
                                                              MpiCommunicator::kMaxMessageBytes),
                                            ::testing::ValuesIn(communicator_cases())),
                         [](const auto& info) {
                           return std::string(std::get<CommunicatorCase>(info.param).name) +
                                  std::to_string(std::get<int64_t>(info.param));
                         });

TEST(MpiCommunicator, RefusesALimitThatCutsElements) {
  EXPECT_THROW(MpiCommunicator(MPI_COMM_WORLD, 12), c10::Error);
}

TEST(MpiSession, KnowsTheLauncher) {
  // mpirun_test.sh says how many ranks it started, all on this host.
  const int started = std::atoi(std::getenv("NARROWGAUGE_TEST_RANKS"));
  const MpiCommunicator world(MPI_COMM_WORLD);
  EXPECT_EQ(world.size(), started);
}

}  // namespace
}  // namespace narrowgauge::comm

int main(int argc, char** argv) {
  narrowgauge::comm::MpiSession session;
  ::testing::InitGoogleTest(&argc, argv);
  const int started = std::atoi(std::getenv("NARROWGAUGE_TEST_RANKS"));
  if (!session.under_launcher() || session.local_size() != started ||
      session.local_rank() != session.world()->rank()) {
    return session.fail("expected a session of " + std::to_string(started) + " local ranks, got " +
                        std::to_string(session.local_size()));
  }
  return RUN_ALL_TESTS();
}

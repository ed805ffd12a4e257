#include "comm/thread_communicator.h"

#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "tests/comm/communicator_cases.h"
#include "tests/support/counting_communicator.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::comm {
namespace {

using narrowgauge::testing::CollectiveLog;
using narrowgauge::testing::CountingCommunicator;
using narrowgauge::testing::run_ranks;
using narrowgauge::testing::run_ranks_shared;

class ThreadCommunicatorSuite : public ::testing::TestWithParam<std::tuple<int, CommunicatorCase>> {
};

TEST_P(ThreadCommunicatorSuite, Case) {
  run_ranks(std::get<int>(GetParam()), std::get<CommunicatorCase>(GetParam()).run);
}

INSTANTIATE_TEST_SUITE_P(Ranks, ThreadCommunicatorSuite,
                         ::testing::Combine(::testing::Values(1, 2, 3, 4),
                                            ::testing::ValuesIn(communicator_cases())),
                         [](const auto& info) {
                           return std::string(std::get<CommunicatorCase>(info.param).name) +
                                  std::to_string(std::get<int>(info.param));
                         });

TEST(ThreadCommunicator, FirstExceptionReleasesAllAndIsRethrown) {
  try {
    run_ranks(3, [](Communicator& communicator) {
      if (communicator.rank() == 1) {
        throw std::out_of_range("rank 1 fell over");
      }
      try {
        barrier(communicator);
        ADD_FAILURE() << "the barrier returned without rank 1";
      } catch (const CommunicatorAborted& aborted) {
        EXPECT_STREQ(aborted.what(), "rank 1 fell over");
        EXPECT_THROW(barrier(communicator), CommunicatorAborted);  // for ever
        throw;
      }
    });
    FAIL() << "expected the exception of rank 1";
  } catch (const std::out_of_range& error) {
    EXPECT_STREQ(error.what(), "rank 1 fell over");
  }
}

TEST(ThreadCommunicator, ExceptionReachesRanksThatWaitInASplit) {
  EXPECT_THROW(run_ranks(4,
                         [](Communicator& communicator) {
                           const auto half = communicator.split(communicator.rank() / 2, 0);
                           if (communicator.rank() == 3) {
                             throw std::out_of_range("rank 3");
                           }
                           for (;;) {
                             barrier(*half);  // ranks 0 and 1 never meet rank 3 here
                           }
                         }),
               std::out_of_range);
}

TEST(ThreadCommunicator, RanksThatDisagreeAreNamed) {
  try {
    run_ranks(2, [](Communicator& communicator) {
      communicator.all_reduce(at::zeros({communicator.rank() == 0 ? 3 : 4}), ReduceOp::kSum);
    });
    FAIL() << "expected an error";
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    EXPECT_NE(text.find("of 3 Float elements on rank 0"), std::string::npos) << text;
    EXPECT_NE(text.find("of 4 Float elements on rank 1"), std::string::npos) << text;
  }
}

TEST(CountingCommunicator, WritesDownEveryCollectiveOfItselfAndItsSplits) {
  run_ranks_shared(2, [](std::shared_ptr<Communicator> world) {
    const auto log = std::make_shared<CollectiveLog>();
    CountingCommunicator counting(world, log);
    counting.all_gather(at::zeros({8}), at::zeros({4}));
    counting.split(0, world->rank())->all_reduce(at::zeros({2}, at::kLong), ReduceOp::kMax);
    EXPECT_EQ(log->count("all_gather"), 1);
    EXPECT_EQ(log->count("all_reduce"), 1);
    EXPECT_EQ(log->count("reduce_scatter"), 0);
    EXPECT_EQ(log->records()[0].size_bytes, 32);
    EXPECT_EQ(log->records()[1].dtype, at::kLong);
  });
}

}  // namespace
}  // namespace narrowgauge::comm

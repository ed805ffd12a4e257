#include "comm/stream.h"

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <atomic>
#include <chrono>
#include <future>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/comm/communicator_cases.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::comm {
namespace {

using narrowgauge::testing::run_ranks;

template <typename AnyStream>
class StreamSuite : public ::testing::Test {};
using Streams = ::testing::Types<InlineStream, ThreadStream>;
TYPED_TEST_SUITE(StreamSuite, Streams);

TYPED_TEST(StreamSuite, RunsInTheOrderGiven) {
  TypeParam stream;
  std::vector<int> order;
  std::shared_ptr<Work> last;
  for (int i = 0; i < 1000; ++i) {
    last = stream.run([&order, i] { order.push_back(i); });
  }
  last->wait();
  ASSERT_EQ(order.size(), 1000U);
  for (int i = 0; i < 1000; ++i) {
    EXPECT_EQ(order[i], i);
  }
}

TYPED_TEST(StreamSuite, WaitRethrowsEachTimeAndLaterPiecesRun) {
  TypeParam stream;
  const auto failing = stream.run([] { throw std::out_of_range("the cause"); });
  bool ran = false;
  stream.run([&ran] { ran = true; })->wait();
  EXPECT_TRUE(ran);
  for (int i = 0; i < 2; ++i) {
    try {
      failing->wait();
      ADD_FAILURE() << "expected the exception of the piece";
    } catch (const std::out_of_range& error) {
      EXPECT_STREQ(error.what(), "the cause");
    }
  }
}

TYPED_TEST(StreamSuite, ReleasesWhatAPieceHoldsBeforeWaitReturns) {
  TypeParam stream;
  for (int i = 0; i < 200; ++i) {
    const auto held = std::make_shared<int>(i);
    stream.run([held] {})->wait();
    EXPECT_EQ(held.use_count(), 1);
  }
}

TYPED_TEST(StreamSuite, WorkOutlivesItsStream) {
  std::shared_ptr<Work> work;
  int value = 0;
  {
    TypeParam stream;
    work = stream.run([&value] { value = 7; });
  }
  work->wait();
  EXPECT_EQ(value, 7);
}

TEST(ThreadStream, RunsBesideTheCaller) {
  std::promise<void> go;
  ThreadStream stream;
  const auto work = stream.run([ready = go.get_future().share()] { ready.wait(); });
  go.set_value();  // never reached if run() waited for the piece
  work->wait();
}

TEST(ThreadStream, DestructorFinishesWhatWasHandedOver) {
  std::atomic<int> finished = 0;
  {
    ThreadStream stream;
    for (int i = 0; i < 20; ++i) {
      stream.run([&finished] {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        ++finished;
      });
    }
  }
  EXPECT_EQ(finished, 20);
}

TEST(ThreadStream, RunsWithoutAutogradAndWithOneOpenMpThread) {
  at::set_num_threads(2);
  ThreadStream stream;
  bool records = true;
  int torch_threads = 0;
  int our_threads = 0;
  stream
      .run([&] {
        records = c10::GradMode::is_enabled();
        torch_threads = at::get_num_threads();
        our_threads = omp_get_max_threads();
      })
      ->wait();
  EXPECT_FALSE(records);
  EXPECT_EQ(torch_threads, 1);
  EXPECT_EQ(our_threads, 1);
  EXPECT_TRUE(c10::GradMode::is_enabled());
  EXPECT_EQ(at::get_num_threads(), 2) << "the caller keeps its own";
}

TEST(ThreadStream, ManyThreadsMayWaitForOnePiece) {
  ThreadStream stream;
  std::promise<void> go;
  const auto work = stream.run([ready = go.get_future().share()] {
    ready.wait();
    throw std::runtime_error("told to all");
  });
  std::vector<std::future<void>> waiting;
  waiting.reserve(4);
  for (int i = 0; i < 4; ++i) {
    waiting.push_back(std::async(std::launch::async, [work] { work->wait(); }));
  }
  go.set_value();
  for (auto& waiter : waiting) {
    EXPECT_THROW(waiter.get(), std::runtime_error);
  }
}

// Collectives on the stream of each rank while the rank itself computes.
TEST(ThreadStream, CollectivesOfAllRanksGoOnBesideTheirComputation) {
  run_ranks(3, [](Communicator& communicator) {
    ThreadStream stream;
    std::vector<at::Tensor> gathered;
    std::vector<std::shared_ptr<Work>> works;
    const at::Tensor mine = at::full({100}, communicator.rank(), at::kInt);
    for (int i = 0; i < 10; ++i) {
      gathered.push_back(at::empty({300}, at::kInt));
      works.push_back(stream.run([&communicator, output = gathered.back(), mine] {
        communicator.all_gather(output, mine);
      }));
    }
    const double computed = at::arange(1000, at::kDouble).sum().item<double>();
    for (int i = 0; i < 10; ++i) {
      works[i]->wait();
      for (int rank = 0; rank < 3; ++rank) {
        EXPECT_EQ(gathered[i][100 * rank].item<int>(), rank);
      }
    }
    EXPECT_EQ(computed, 499'500.0);
  });
}

class StreamedCases : public ::testing::TestWithParam<CommunicatorCase> {};

TEST_P(StreamedCases, HoldOnAThreadStream) {
  run_ranks(3, [](Communicator& communicator) {
    ThreadStream stream;
    stream.run([&communicator] { GetParam().run(communicator); })->wait();
  });
}

INSTANTIATE_TEST_SUITE_P(Communicator, StreamedCases, ::testing::ValuesIn(communicator_cases()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace narrowgauge::comm

#include "checkpoint/checkpoint_saver.h"

#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <thread>

#include "checkpoint/checkpoint_store.h"
#include "checkpoint/latest_checkpoint.h"
#include "checkpoint/sharded_checkpoint.h"
#include "comm/self_communicator.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::checkpoint {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Staging = CheckpointSaver::Staging;

constexpr int64_t kRows = 96;
constexpr int64_t kColumns = 64;

std::vector<ShardChunk> chunks_of(double value, int rank, int size) {
  const int64_t rows = kRows / size;
  return {{"a", at::full({rows, kColumns}, value), {kRows, kColumns}, rank * rows},
          {"replicated", at::full({5, 3}, value), {5, 3}, 0}};
}

class CheckpointSaverTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* root = std::getenv("TEST_TMPDIR");
    std::string name = (fs::path(root ? root : "/tmp") / "saver.XXXXXX").string();
    store_ = ::mkdtemp(name.data());
  }
  void TearDown() override { fs::remove_all(store_); }

  // The value that a checkpoint of chunks_of holds everywhere; NaN where it is a mixture.
  double value_of(int64_t step) {
    const std::vector<ShardChunk> loaded = chunks_of(0, 0, 1);
    Checkpoint::open(store_ / step_name(step)).load(loaded);
    const double value = loaded[0].local[0][0].item<double>();
    const bool is_uniform = loaded[0].local.eq(value).all().item<bool>() &&
                            loaded[1].local.eq(value).all().item<bool>();
    return is_uniform ? value : std::nan("");
  }

  fs::path store_;
};

TEST_F(CheckpointSaverTest, TensorsMayChangeAsSoonAsACopyIsTaken) {
  for (const int size : {1, 2, 3, 4}) {
    testing::run_ranks(size, [&](comm::Communicator& communicator) {
      CheckpointSaver saver(store_, 0, communicator);
      for (const int64_t step : {10 * size, 10 * size + 1, 10 * size + 2}) {
        const auto chunks =
            chunks_of(static_cast<double>(step), communicator.rank(), communicator.size());
        EXPECT_FALSE(saver.is_busy());
        saver.start(step, chunks, R"({"x":1})", Staging::kCopy);
        EXPECT_TRUE(saver.is_busy());
        EXPECT_EQ(saver.step_under_way(), step);
        for (const ShardChunk& chunk : chunks) {
          chunk.local.fill_(-1);
        }
        const auto outcome = saver.wait();
        ASSERT_TRUE(outcome.has_value());
        EXPECT_EQ(outcome->error, "");
        EXPECT_EQ(outcome->step, step);
        EXPECT_EQ(outcome->size_bytes, (kRows * kColumns + 15) * sizeof(float));
        EXPECT_THAT(outcome->warnings, IsEmpty());
        EXPECT_FALSE(saver.is_busy());
        EXPECT_EQ(saver.wait(), std::nullopt);
      }
    });
    for (const int64_t step : {10 * size, 10 * size + 1, 10 * size + 2}) {
      EXPECT_EQ(value_of(step), step);
    }
  }
}

TEST_F(CheckpointSaverTest, PollingNeverWaitsForTheDisk) {
  comm::SelfCommunicator self;
  CheckpointSaver saver(store_, 0, self);
  const auto large = std::vector<ShardChunk>{{"w", at::ones({1 << 24}), {1 << 24}, 0}};  // 64 MiB
  saver.start(2, large, "{}", Staging::kCopy);
  int num_polls = 0;
  double slowest = 0;
  std::optional<SaveOutcome> outcome;
  while (!outcome) {
    const auto began = std::chrono::steady_clock::now();
    outcome = saver.poll();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
    slowest = std::max(slowest, took.count());
    ++num_polls;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(outcome->error, "");
  EXPECT_GE(num_polls, 2);
  EXPECT_EQ(read_latest(store_), store_ / step_name(2));
  EXPECT_LT(slowest, 0.5 * outcome->seconds + 0.02);
}

TEST_F(CheckpointSaverTest, AFailureIsToldOnEveryRankAndTheNextSaveWorks) {
  std::mutex mutex;
  std::vector<std::string> errors;
  testing::run_ranks(3, [&](comm::Communicator& communicator) {
    CheckpointSaver saver(store_, 0, communicator);
    const auto save = [&](int64_t step) {
      saver.start(step, chunks_of(static_cast<double>(step), communicator.rank(), 3), "{}",
                  Staging::kCopy);
      return *saver.wait();
    };
    EXPECT_EQ(save(1).error, "");
    comm::barrier(communicator);
    if (communicator.rank() == 0) {  // the store becomes a file
      fs::rename(store_, store_.string() + ".moved");
      std::ofstream(store_) << "x";
    }
    comm::barrier(communicator);
    const SaveOutcome failed = save(2);
    EXPECT_EQ(failed.step, 2);
    {
      const std::lock_guard<std::mutex> lock(mutex);
      errors.push_back(failed.error);
    }
    comm::barrier(communicator);
    if (communicator.rank() == 0) {
      fs::remove(store_);
      fs::rename(store_.string() + ".moved", store_);
    }
    comm::barrier(communicator);
    EXPECT_EQ(save(3).error, "");
  });
  EXPECT_EQ(errors.size(), 3U);
  for (const std::string& error : errors) {
    EXPECT_THAT(error, HasSubstr(store_.filename().string()));
  }
  EXPECT_EQ(value_of(1), 1);
  EXPECT_EQ(value_of(3), 3);
  EXPECT_THAT(list_leftovers(store_), IsEmpty());
}

TEST_F(CheckpointSaverTest, ChunksThatDoNotFitTogetherThrowOnEveryRank) {
  testing::run_ranks(2, [&](comm::Communicator& communicator) {
    CheckpointSaver saver(store_, 0, communicator);
    const std::vector<ShardChunk> chunks = {{"w", at::ones({3}), {5}, 2 * communicator.rank()}};
    EXPECT_THROW(saver.start(1, chunks, "{}", Staging::kCopy), std::exception);
    EXPECT_FALSE(saver.is_busy());
    EXPECT_THROW(saver.start(-1, {}, "{}", Staging::kCopy), c10::Error);
    // The plan is made anew where one rank's chunks have changed.
    for (const int64_t size : {4, 6}) {
      const std::vector<ShardChunk> good = {
          {"w", at::ones({size / 2}), {size}, size / 2 * communicator.rank()}};
      saver.start(size, good, "{}", Staging::kCopy);
      EXPECT_EQ(saver.wait()->error, "");
    }
  });
  EXPECT_EQ(Checkpoint::open(store_ / step_name(6)).manifest().tensors.at("w").sizes,
            std::vector<int64_t>{6});
}

TEST_F(CheckpointSaverTest, OldOnesGoOnlyAfterTheNewOneIsThere) {
  testing::run_ranks(2, [&](comm::Communicator& communicator) {
    CheckpointSaver saver(store_, 2, communicator);
    for (const int64_t step : {1, 2, 3, 4}) {
      saver.start(step, chunks_of(1, communicator.rank(), 2), "{}", Staging::kCopy);
      EXPECT_EQ(saver.wait()->error, "");
    }
  });
  EXPECT_EQ(list_checkpoints(store_).size(), 2U);
  EXPECT_EQ(value_of(4), 1);
  EXPECT_EQ(value_of(3), 1);
}

TEST_F(CheckpointSaverTest, TheEndOfTheSaverEndsTheSave) {
  comm::SelfCommunicator self;
  {
    CheckpointSaver saver(store_, 0, self);
    saver.start(1, chunks_of(1, 0, 1), "{}", Staging::kCopy);
  }
  EXPECT_EQ(value_of(1), 1);  // alone: finished
  testing::run_ranks(2, [&](comm::Communicator& communicator) {
    CheckpointSaver saver(store_, 0, communicator);
    saver.start(2, chunks_of(2, communicator.rank(), 2), "{}", Staging::kCopy);
  });
  EXPECT_EQ(read_latest(store_), store_ / step_name(1));  // of several: as if killed
  remove_leftovers(store_);
  EXPECT_EQ(list_checkpoints(store_).size(), 1U);
}

}  // namespace
}  // namespace narrowgauge::checkpoint

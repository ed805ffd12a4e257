// The device is meta: its communicator writes down what reaches it, and moves nothing.

#include "comm/per_device_communicator.h"

#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comm/self_communicator.h"
#include "comm/watched_communicator.h"
#include "tests/comm/communicator_cases.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::comm {
namespace {

// Refuses tensors of the CPU, as NCCL does.
class OfDevice final : public Communicator {
 public:
  using Calls = std::shared_ptr<std::vector<std::string>>;

  OfDevice(int rank, int size, Calls calls) : rank_(rank), size_(size), calls_(std::move(calls)) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void all_gather(const at::Tensor& output, const at::Tensor& input) override {
    note("all_gather", {output, input});
  }
  void reduce_scatter(const at::Tensor& output, const at::Tensor& input, ReduceOp) override {
    note("reduce_scatter", {output, input});
  }
  void all_reduce(const at::Tensor& tensor, ReduceOp) override { note("all_reduce", {tensor}); }
  void broadcast(const at::Tensor& tensor, int) override { note("broadcast", {tensor}); }
  std::shared_ptr<Communicator> split(int, int key) override {
    note("split", {});
    return std::make_shared<OfDevice>(key, size_, calls_);
  }

 private:
  void note(const char* name, const std::vector<at::Tensor>& tensors) {
    for (const at::Tensor& tensor : tensors) {
      TORCH_CHECK(tensor.is_meta(), "expected a tensor of the device, got ", tensor.device());
    }
    calls_->emplace_back(name);
  }

  int rank_;
  int size_;
  Calls calls_;
};

// Throws when a tensor comes; its splits have the ranks of those of `inner`.
class Untouched final : public Communicator {
 public:
  explicit Untouched(std::shared_ptr<Communicator> inner) : inner_(std::move(inner)) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  void all_gather(const at::Tensor&, const at::Tensor&) override { fail(); }
  void reduce_scatter(const at::Tensor&, const at::Tensor&, ReduceOp) override { fail(); }
  void all_reduce(const at::Tensor&, ReduceOp) override { fail(); }
  void broadcast(const at::Tensor&, int) override { fail(); }
  std::shared_ptr<Communicator> split(int color, int key) override {
    return std::make_shared<Untouched>(inner_->split(color, key));
  }

 private:
  static void fail() { TORCH_CHECK(false, "expected tensors of the device alone"); }

  std::shared_ptr<Communicator> inner_;
};

class PerDeviceCases : public ::testing::TestWithParam<CommunicatorCase> {};

TEST_P(PerDeviceCases, HoldOnTheCpu) {
  narrowgauge::testing::run_ranks_shared(2, [](std::shared_ptr<Communicator> cpu) {
    PerDeviceCommunicator communicator(cpu, std::make_shared<Untouched>(cpu));
    GetParam().run(communicator);
  });
}

INSTANTIATE_TEST_SUITE_P(Communicator, PerDeviceCases, ::testing::ValuesIn(communicator_cases()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(PerDeviceCommunicator, SendsEachTensorWhereItLies) {
  const auto calls = std::make_shared<std::vector<std::string>>();
  PerDeviceCommunicator communicator(std::make_shared<SelfCommunicator>(),
                                     std::make_shared<OfDevice>(0, 1, calls));
  const at::Tensor there = at::zeros({4}, at::kMeta);
  const at::Tensor here = at::zeros({4});
  const auto use = [&](Communicator& all) {
    all.all_gather(there, there);
    all.reduce_scatter(there, there, ReduceOp::kSum);
    all.all_reduce(there, ReduceOp::kMax);
    all.broadcast(there, 0);
    all.all_gather(at::zeros({4}), here);
    all.reduce_scatter(at::zeros({4}), here, ReduceOp::kSum);
    all.all_reduce(here, ReduceOp::kMax);
    all.broadcast(here, 0);
    barrier(all);
  };
  const std::vector<std::string> once = {"all_gather", "reduce_scatter", "all_reduce", "broadcast"};
  use(communicator);
  EXPECT_EQ(*calls, once);
  calls->clear();
  const auto part = communicator.split(0, 0);
  EXPECT_EQ(*calls, std::vector<std::string>{"split"});
  calls->clear();
  use(*part);
  EXPECT_EQ(*calls, once);
  EXPECT_THROW(communicator.all_gather(there, here), c10::Error);
  EXPECT_THROW(communicator.all_gather(here, there), c10::Error);
  EXPECT_THROW(communicator.all_reduce(at::Tensor(), ReduceOp::kSum), c10::Error);
}

TEST(PerDeviceCommunicator, RefusesOtherRanks) {
  const auto cpu = std::make_shared<SelfCommunicator>();
  const auto calls = std::make_shared<std::vector<std::string>>();
  EXPECT_THROW(PerDeviceCommunicator(cpu, std::make_shared<OfDevice>(0, 2, calls)), c10::Error);
  EXPECT_THROW(PerDeviceCommunicator(cpu, std::make_shared<OfDevice>(1, 1, calls)), c10::Error);
}

// One record numbers both kinds, in the order of the calls, which is the same on every rank.
TEST(PerDeviceCommunicator, IsWatchedAsOneGroup) {
  const auto record = std::make_shared<FlightRecord>();
  WatchedCommunicator watched(
      std::make_shared<PerDeviceCommunicator>(
          std::make_shared<SelfCommunicator>(),
          std::make_shared<OfDevice>(0, 1, std::make_shared<std::vector<std::string>>())),
      record, "world", "world");
  watched.all_reduce(at::zeros({1}), ReduceOp::kSum);
  watched.split(0, 0)->broadcast(at::zeros({2}), 0);
  const auto progress = record->progress();
  ASSERT_EQ(progress.size(), 2U);
  EXPECT_EQ(progress[0].finished, 2);
  EXPECT_EQ(progress[1].finished, 1);
}

}  // namespace
}  // namespace narrowgauge::comm

// fsdp/ on a GPU with CUDA streams and NCCL, as one rank of a world whose others echo it: what the
// rank sends to itself goes through an NCCL communicator of one rank, watched as in training.
// Products of large matrices hold up each collective, so whatever does not wait for one reads what
// was there before: NaN.

#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <optional>

#include "comm/flight_record.h"
#include "comm/nccl_communicator.h"
#include "comm/per_device_communicator.h"
#include "comm/self_communicator.h"
#include "comm/watched_communicator.h"
#include "tests/fsdp/echo_world.h"

namespace narrowgauge::fsdp {
namespace {

const at::Device kDevice(at::DeviceType::CUDA, 0);

// What MpiSession::world makes for a GPU, with a record of its own.
struct World {
  std::shared_ptr<comm::FlightRecord> record = std::make_shared<comm::FlightRecord>();
  std::shared_ptr<comm::NcclCommunicator> nccl;
  std::shared_ptr<comm::Communicator> alone;

  World() {
    const auto cpu = std::make_shared<comm::SelfCommunicator>();
    nccl = comm::NcclCommunicator::create(*cpu, kDevice);
    alone = std::make_shared<comm::WatchedCommunicator>(
        std::make_shared<comm::PerDeviceCommunicator>(cpu, nccl), record, "world", "world");
  }

  // Every collective has ended, on the device too, and without an error.
  void expect_over() const {
    c10::impl::VirtualGuardImpl(kDevice.type()).synchronizeDevice(kDevice.index());
    record->poll();
    EXPECT_FALSE(record->oldest_pending().has_value());
    EXPECT_EQ(nccl->error(), std::nullopt);
    int64_t finished = 0;
    for (const comm::GroupProgress& group : record->progress()) {
      EXPECT_EQ(group.finished, group.started) << group.id;
      finished += group.finished;
    }
    EXPECT_GT(finished, 0);
  }
};

class FullyShardOnDevice : public ::testing::TestWithParam<EchoCase> {};

TEST_P(FullyShardOnDevice, EqualsNoSharding) {
  const at::Tensor ballast =
      at::zeros({2048, 2048}, at::TensorOptions().dtype(at::kFloat).device(kDevice));
  // About a millisecond, on the current stream.
  const auto delay = [ballast] { at::mm(at::mm(ballast, ballast), ballast); };
  const World world;
  expect_echo_parity(GetParam(), kDevice, world.alone, CommStreams::inline_streams(), nullptr);
  expect_echo_parity(GetParam(), kDevice, world.alone, std::nullopt, nullptr);
  expect_echo_parity(GetParam(), kDevice, world.alone, std::nullopt, delay);
  world.expect_over();
}

INSTANTIATE_TEST_SUITE_P(
    Cases, FullyShardOnDevice,
    ::testing::Values(
        EchoCase{.name = "Default"}, EchoCase{.name = "Always", .reshard_after_forward = true},
        EchoCase{.name = "Never", .reshard_after_forward = false},
        EchoCase{.name = "Pairs", .shard = 4, .reshard_after_forward = 2},
        EchoCase{.name = "Bf16", .shard = 4, .param_dtype = at::kBFloat16},
        EchoCase{.name = "Replicas", .replicate = 2, .param_dtype = at::kBFloat16},
        EchoCase{.name = "ReplicasAlone", .replicate = 2, .shard = 1},
        EchoCase{.name = "Offload", .offload = true},
        EchoCase{
            .name = "OffloadBf16", .replicate = 2, .param_dtype = at::kBFloat16, .offload = true}),
    [](const auto& info) { return info.param.name; });

int64_t allocated_bytes(bool peak) {
  constexpr auto kAllPools = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  const auto stats =
      c10::getDeviceAllocator(kDevice.type())->getDeviceStats(kDevice.index()).requested_bytes;
  return peak ? stats[kAllPools].peak : stats[kAllPools].current;
}

// With shards, gradients and optimizer on the CPU, what is left on the device are two gathered
// groups with what they are copied from and reduced through, however many blocks there are.
TEST(FullyShardOnDevice, OffloadLeavesAFewBlocksOnTheDevice) {
  constexpr int64_t kBlock = 4 * (2 * 512 * 2048 + 2048 + 512);  // bytes, fp32
  const World world;
  int64_t peaks[2];
  for (const int num_blocks : {8, 16}) {
    const ToySpec spec{.vocab = 32, .dim = 512, .hidden = 2048, .num_blocks = num_blocks};
    const auto [mesh, model] = make_echo_model({.reshard_after_forward = true, .offload = true},
                                               spec, kDevice, world.alone, nullptr);
    const ToyBatch batch = toy_batch(spec, 0, 2);
    const auto step = [&] {
      model->loss_sum(batch.tokens.to(kDevice), batch.targets.to(kDevice)).backward();
      for (at::Tensor& local : locals_of(*model)) {
        ASSERT_TRUE(local.is_cpu() && local.is_pinned() && local.grad().is_cpu());
        local.mutable_grad().reset();
      }
    };
    step();  // libraries take their workspaces
    c10::getDeviceAllocator(kDevice.type())->resetPeakStats(kDevice.index());
    const int64_t before = allocated_bytes(/*peak=*/false);
    step();
    peaks[num_blocks == 16] = allocated_bytes(/*peak=*/true) - before;
    EXPECT_LE(peaks[num_blocks == 16], 6 * kBlock);
    EXPECT_EQ(allocated_bytes(/*peak=*/false), before);
  }
  // Activations grow with the blocks, parameters and gradients do not.
  EXPECT_LT(peaks[1] - peaks[0], kBlock);
}

}  // namespace
}  // namespace narrowgauge::fsdp

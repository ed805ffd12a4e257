// fsdp/ on a device with streams of its own, as one rank of a world whose others echo it. Products
// of large matrices hold up each collective, so whatever does not wait for one reads what was there
// before: NaN.

#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <gtest/gtest.h>

#include <exception>
#include <functional>
#include <memory>
#include <utility>

#include "tests/fsdp/echo_world.h"

namespace narrowgauge::fsdp {
namespace {

const at::Device kDevice(at::DeviceType::CUDA, 0);

c10::impl::VirtualGuardImpl device_guard() { return c10::impl::VirtualGuardImpl(kDevice.type()); }

// A stream of the device, by c10's interface to any.
class DeviceStream final : public comm::Stream {
 public:
  std::shared_ptr<comm::Work> run(std::function<void()> work) override {
    c10::Event before(kDevice.type());
    before.record(device_guard().getStream(kDevice));
    before.block(stream_);
    auto enqueued = std::make_shared<Enqueued>();
    try {
      const c10::StreamGuard guard(stream_);
      work();
    } catch (...) {
      enqueued->error = std::current_exception();
    }
    enqueued->end.record(stream_);
    return enqueued;
  }

 private:
  struct Enqueued final : comm::Work {
    void wait() override {
      end.block(device_guard().getStream(kDevice));
      if (error) {
        std::rethrow_exception(error);
      }
    }
    c10::Event end{kDevice.type()};
    std::exception_ptr error;
  };

  c10::Stream stream_ = device_guard().getStreamFromGlobalPool(kDevice, /*isHighPriority=*/true);
};

CommStreams device_streams() {
  const auto stream = [] { return std::make_shared<DeviceStream>(); };
  return {stream(), stream(), stream(), stream(), true};
}

class FullyShardOnDevice : public ::testing::TestWithParam<EchoCase> {};

TEST_P(FullyShardOnDevice, EqualsNoSharding) {
  const at::Tensor ballast =
      at::zeros({2048, 2048}, at::TensorOptions().dtype(at::kFloat).device(kDevice));
  // About a millisecond, on the current stream.
  const auto delay = [ballast] { at::mm(at::mm(ballast, ballast), ballast); };
  expect_echo_parity(GetParam(), kDevice, CommStreams::inline_streams(), nullptr);
  expect_echo_parity(GetParam(), kDevice, device_streams(), nullptr);
  expect_echo_parity(GetParam(), kDevice, device_streams(), delay);
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

}  // namespace
}  // namespace narrowgauge::fsdp

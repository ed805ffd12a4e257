// The world that tests/gpu runs on one device, here on the CPU: with streams apart as on a device,
// since its collectives wait for nobody and may run in any order.

#include "tests/fsdp/echo_world.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "comm/self_communicator.h"

namespace narrowgauge::fsdp {
namespace {

CommStreams streams_apart() {
  const auto thread = [] { return std::make_shared<comm::ThreadStream>(); };
  return {thread(), thread(), thread(), thread(), true};
}

TEST(EchoWorld, EqualsNoSharding) {
  const auto alone = std::make_shared<comm::SelfCommunicator>();
  const auto delay = [] { std::this_thread::sleep_for(std::chrono::milliseconds(1)); };
  for (const EchoCase& tested :
       {EchoCase{.name = "default"}, EchoCase{.name = "always", .reshard_after_forward = true},
        EchoCase{.name = "never", .reshard_after_forward = false},
        EchoCase{.name = "pairs", .shard = 4, .reshard_after_forward = 2},
        EchoCase{.name = "bf16", .shard = 4, .param_dtype = at::kBFloat16},
        EchoCase{.name = "replicas", .replicate = 2, .param_dtype = at::kBFloat16},
        EchoCase{.name = "replicas alone", .replicate = 2, .shard = 1},
        EchoCase{.name = "offload", .param_dtype = at::kBFloat16, .offload = true}}) {
    expect_echo_parity(tested, at::kCPU, alone, CommStreams::inline_streams(), nullptr);
    expect_echo_parity(tested, at::kCPU, alone, std::nullopt, delay);
    expect_echo_parity(tested, at::kCPU, alone, streams_apart(), delay);
  }
}

}  // namespace
}  // namespace narrowgauge::fsdp

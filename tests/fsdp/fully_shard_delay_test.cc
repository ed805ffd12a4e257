// Parity with one process while ranks are slow at one kind of step: whoever reads a buffer before
// the collective that fills it is done, or frees one before, computes something else.

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/fsdp/delaying_communicator.h"
#include "tests/fsdp/parity_reference.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::fsdp {
namespace {

using narrowgauge::testing::run_ranks_shared;

constexpr int kSteps = 10;
constexpr std::chrono::milliseconds kDelay{4};

struct Delays {
  const char* name;
  bool forward = false;
  bool backward = false;
  bool all_gather = false;
  bool reduce = false;
};

// Sleeps before each block's forward computes, and when it has computed the first half of its
// gradients.
void delay_compute(ToyModel& model, const Delays& delays) {
  for (const auto& block : model.blocks) {
    block->in->register_forward_hook([delays](at::Tensor y) {
      if (delays.forward) {
        std::this_thread::sleep_for(kDelay);
      }
      if (delays.backward && y.requires_grad()) {
        y.register_hook([](const at::Tensor&) { std::this_thread::sleep_for(kDelay); });
      }
      return y;
    });
  }
}

class FullyShardDelays : public ::testing::TestWithParam<TrainingCase> {};

TEST_P(FullyShardDelays, SlowRanksChangeNothing) {
  const TrainingCase& training = GetParam();
  ParityReference reference(training);
  std::vector<StepRecord> expected;
  for (int step = 0; step < kSteps; ++step) {
    expected.push_back(reference.step(step));
  }
  for (const Delays& delays :
       {Delays{"forward", true}, Delays{"backward", false, true},
        Delays{"all-gather", false, false, true}, Delays{"reduce", false, false, false, true},
        Delays{"all", true, true, true, true}}) {
    // All ranks alike, then the last one alone.
    for (const bool last_alone : {false, true}) {
      SCOPED_TRACE(std::string(delays.name) + (last_alone ? ", last rank" : ""));
      run_ranks_shared(training.replicate * training.shard, [&](auto world) {
        const bool slow = !last_alone || world->rank() + 1 == world->size();
        const Delays mine = slow ? delays : Delays{"none"};
        const CollectiveDelays collective{
            .all_gather = mine.all_gather ? kDelay : std::chrono::milliseconds(0),
            .reduce = mine.reduce ? kDelay : std::chrono::milliseconds(0)};
        expect_parity(training, std::make_shared<DelayingCommunicator>(world, collective), expected,
                      reference, [&](ToyModel& model) { delay_compute(model, mine); });
      });
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, FullyShardDelays,
    ::testing::Values(TrainingCase{.name = "Default", .shard = 2},
                      TrainingCase{.name = "Always",
                                   .shard = 3,
                                   .reshard_after_forward = true,
                                   .param_dtype = at::kBFloat16},
                      TrainingCase{.name = "Never", .shard = 2, .reshard_after_forward = false},
                      TrainingCase{.name = "Pairs", .shard = 4, .reshard_after_forward = 2},
                      TrainingCase{.name = "ReplicasTiedMicroBatches",
                                   .replicate = 2,
                                   .shard = 2,
                                   .param_dtype = at::kBFloat16,
                                   .tied = true,
                                   .num_micro_batches = 2},
                      TrainingCase{.name = "ReplicasAlone", .replicate = 2},
                      TrainingCase{.name = "Offload", .shard = 2, .offload = true}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace narrowgauge::fsdp

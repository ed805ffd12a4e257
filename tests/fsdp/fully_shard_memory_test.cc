// Peak memory within the formulas of FSDP2's test_fully_shard_memory.py, by counting the bytes of
// all tensors that live on a rank.

#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fsdp/fully_shard.h"
#include "tests/fsdp/counting_allocator.h"
#include "tests/fsdp/toy_model.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::fsdp {
namespace {

using narrowgauge::testing::run_ranks_shared;

// Parameters dwarf the activations of a few tokens.
const ToySpec kSpec{.vocab = 32, .dim = 128, .hidden = 512, .num_blocks = 3};
constexpr int kRanks = 2;
constexpr int64_t kBlock = 4 * (2 * 128 * 512 + 512 + 128);  // bytes, fp32
constexpr int64_t kNonBlock = 4 * (2 * 32 * 128);
constexpr int64_t kFull = 3 * kBlock + kNonBlock;
constexpr int64_t kSharded = kFull / kRanks;
// Activations and their gradients, ids: 8 tokens in 3 blocks. FSDP2's test grants 16 MB, which is
// half a block there.
constexpr int64_t kBuffer = kBlock / 4;

const bool kInstalled = [] {
  install_counting_allocator();
  return true;
}();

TEST(Memory, MaterializingNeverNeedsMoreThanTheShardsAndOneParameter) {
  ASSERT_TRUE(kInstalled);
  run_ranks_shared(kRanks, [](auto world) {
    const comm::DeviceMesh mesh(world, 1, kRanks);
    LiveBytes bytes;
    bytes.count_this_thread();
    const auto model = std::make_shared<ToyModel>(kSpec, at::TensorOptions(at::kMeta));
    for (const auto& block : model->blocks) {
      fully_shard(*block, mesh);
    }
    fully_shard(*model, mesh);
    EXPECT_EQ(bytes.peak(), 0);
    materialize(*model, at::kCPU,
                [](const std::string&, at::Tensor shard, int64_t) { shard.fill_(0.1); });
    EXPECT_EQ(bytes.now(), kSharded);
    EXPECT_LE(bytes.peak(), kSharded + 4 * 128 * 512);
  });
}

TEST(Memory, ShardingAModelInPlaceFreesEachParameterBeforeTheNext) {
  run_ranks_shared(kRanks, [](auto world) {
    const comm::DeviceMesh mesh(world, 1, kRanks);
    LiveBytes bytes;
    bytes.count_this_thread();
    const auto model = std::make_shared<ToyModel>(kSpec, at::TensorOptions());
    EXPECT_EQ(bytes.now(), kFull);
    bytes.reset_peak();
    for (const auto& block : model->blocks) {
      fully_shard(*block, mesh);
    }
    fully_shard(*model, mesh);
    EXPECT_EQ(bytes.now(), kSharded);
    // The unsharded parameter is allocated and freed to have an allocator.
    EXPECT_LE(bytes.peak(), kFull + 2 * 4 * 128 * 512);
  });
}

struct Bounds {
  std::optional<ReshardAfterForward> reshard_after_forward;
  int64_t forward;
  int64_t backward;
};

class MemoryOfAStep : public ::testing::TestWithParam<Bounds> {};

TEST_P(MemoryOfAStep, StaysWithinTheFormulas) {
  const Bounds& bounds = GetParam();
  run_ranks_shared(kRanks, [&](auto world) {
    const comm::DeviceMesh mesh(world, 1, kRanks);
    const ToyBatch batch = toy_batch(kSpec, 0, 2);
    LiveBytes bytes;
    bytes.count_this_thread();
    const auto model =
        make_sharded_toy(kSpec, mesh, {.reshard_after_forward = bounds.reshard_after_forward});
    {
      ToyAdam adam(locals_of(*model), 1e-3);
      EXPECT_EQ(bytes.now(), 3 * kSharded);  // with both moments
      for (int step = 0; step < 3; ++step) {
        const int64_t moments = 2 * kSharded;
        bytes.reset_peak();
        {
          const at::Tensor loss = model->loss_sum(batch.tokens, batch.targets);
          EXPECT_LE(bytes.peak() - moments, bounds.forward + kBuffer) << step;
          bytes.reset_peak();
          loss.backward();
          EXPECT_LE(bytes.peak() - moments, bounds.backward + kBuffer) << step;
        }
        EXPECT_LE(bytes.now() - moments, 2 * kSharded + kBuffer) << step;
        bytes.reset_peak();
        adam.step();
        // Adam's expressions hold a few temporaries of one shard.
        EXPECT_LE(bytes.peak(), 4 * kSharded + 4 * 4 * 128 * 512 / kRanks + kBuffer) << step;
        for (at::Tensor& local : std::vector<at::Tensor>(locals_of(*model))) {
          local.mutable_grad().reset();
        }
        EXPECT_LE(bytes.now(), 3 * kSharded + kBuffer) << step;
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Cases, MemoryOfAStep,
                         ::testing::Values(Bounds{true, kSharded + 3 * kBlock + kNonBlock,
                                                  2 * kSharded + 3 * kBlock + kNonBlock},
                                           Bounds{std::nullopt, kSharded + 3 * kBlock + kNonBlock,
                                                  2 * kSharded + 3 * kBlock + kNonBlock},
                                           Bounds{false, kSharded + kFull + kBlock,
                                                  kSharded + kFull + 3 * kBlock / 2}));

// In forward: the group that computes, the next one's bytes, the root. Nothing else ever.
TEST(Memory, AtMostTwoGatheredGroups) {
  run_ranks_shared(kRanks, [&](auto world) {
    const comm::DeviceMesh mesh(world, 1, kRanks);
    const ToySpec deep{.vocab = 32, .dim = 128, .hidden = 512, .num_blocks = 8};
    constexpr int64_t kDeepBuffer = 3 * kBuffer;  // activations of 8 blocks, less than a block
    const ToyBatch batch = toy_batch(deep, 0, 2);
    LiveBytes bytes;
    bytes.count_this_thread();
    const auto model = make_sharded_toy(deep, mesh, {.reshard_after_forward = true});
    const int64_t sharded = bytes.now();
    for (int step = 0; step < 2; ++step) {
      bytes.reset_peak();
      const at::Tensor loss = model->loss_sum(batch.tokens, batch.targets);
      EXPECT_LE(bytes.peak(), sharded + 2 * kBlock + kNonBlock + kDeepBuffer);
      EXPECT_GE(bytes.peak(), sharded + 2 * kBlock);  // it does prefetch
      bytes.reset_peak();
      loss.backward();
      // And in backward the gradients of one and the buffer that the last one's are reduced from.
      EXPECT_LE(bytes.peak(), 2 * sharded + 4 * kBlock + 2 * kNonBlock + kDeepBuffer);
      EXPECT_LE(bytes.now(), 2 * sharded + kDeepBuffer);
      for (at::Tensor& local : std::vector<at::Tensor>(locals_of(*model))) {
        local.mutable_grad().reset();
      }
    }
  });
}

// Validation and samples: with as little as training's forward, and nothing is left.
TEST(Memory, AForwardWithoutGradientsHoldsTwoGatheredGroups) {
  run_ranks_shared(kRanks, [&](auto world) {
    const comm::DeviceMesh mesh(world, 1, kRanks);
    const ToySpec deep{.vocab = 32, .dim = 128, .hidden = 512, .num_blocks = 8};
    const ToyBatch batch = toy_batch(deep, 0, 2);
    LiveBytes bytes;
    bytes.count_this_thread();
    const auto model = make_sharded_toy(deep, mesh, {});
    const c10::NoGradGuard no_grad;
    const int64_t sharded = bytes.now();
    for (int step = 0; step < 2; ++step) {
      bytes.reset_peak();
      model->loss_sum(batch.tokens, batch.targets);
      EXPECT_LE(bytes.peak(), sharded + 2 * kBlock + kNonBlock + kBuffer);
      EXPECT_EQ(bytes.now(), sharded);
    }
  });
}

}  // namespace
}  // namespace narrowgauge::fsdp

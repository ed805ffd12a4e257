// Parity of sharded training with one process, and what is not one forward, one backward, one step.

#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fsdp/fully_shard.h"
#include "tests/fsdp/parity_reference.h"
#include "tests/fsdp/toy_model.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::fsdp {
namespace {

using narrowgauge::testing::run_ranks_shared;

constexpr int kSteps = 10;

class FullyShardTraining : public ::testing::TestWithParam<TrainingCase> {};

TEST_P(FullyShardTraining, EqualsOneProcessBitForBit) {
  const TrainingCase& training = GetParam();
  ParityReference reference(training);
  std::vector<StepRecord> expected;
  for (int step = 0; step < kSteps; ++step) {
    expected.push_back(reference.step(step));
  }
  ASSERT_LT(expected.back().losses[0], expected.front().losses[0]) << "it does not learn";
  run_ranks_shared(training.replicate * training.shard,
                   [&](auto world) { expect_parity(training, world, expected, reference); });
}

INSTANTIATE_TEST_SUITE_P(
    Cases, FullyShardTraining,
    ::testing::Values(
        TrainingCase{.name = "OneRank"},
        TrainingCase{.name = "OneRankBf16", .param_dtype = at::kBFloat16, .num_micro_batches = 3},
        TrainingCase{.name = "OneRankTied", .tied = true},
        TrainingCase{.name = "TwoRanks", .shard = 2},
        TrainingCase{.name = "TwoRanksBf16", .shard = 2, .param_dtype = at::kBFloat16},
        TrainingCase{.name = "TwoRanksKeepGathered", .shard = 2, .reshard_after_forward = false},
        TrainingCase{.name = "ThreeRanksReshardRoot", .shard = 3, .reshard_after_forward = true},
        TrainingCase{.name = "ThreeRanksTied", .shard = 3, .tied = true},
        TrainingCase{
            .name = "FourRanksBf16Tied", .shard = 4, .param_dtype = at::kBFloat16, .tied = true},
        TrainingCase{.name = "TwelveRanksMostlyEmptyShards", .shard = 12},
        TrainingCase{.name = "TwoRanksMicroBatches", .shard = 2, .num_micro_batches = 3},
        TrainingCase{.name = "TwoRanksBf16MicroBatches",
                     .shard = 2,
                     .param_dtype = at::kBFloat16,
                     .num_micro_batches = 2},
        TrainingCase{.name = "TwoReplicas", .replicate = 2},
        TrainingCase{.name = "TwoReplicasBf16MicroBatches",
                     .replicate = 2,
                     .param_dtype = at::kBFloat16,
                     .num_micro_batches = 2},
        TrainingCase{.name = "TwoReplicasOfTwoShards", .replicate = 2, .shard = 2},
        TrainingCase{.name = "FourRanksReshardToPairs", .shard = 4, .reshard_after_forward = 2},
        TrainingCase{.name = "FourRanksReshardToOne", .shard = 4, .reshard_after_forward = 1},
        TrainingCase{.name = "FourRanksReshardToAll", .shard = 4, .reshard_after_forward = 4},
        TrainingCase{.name = "SixRanksReshardToTriplesBf16",
                     .shard = 6,
                     .reshard_after_forward = 3,
                     .param_dtype = at::kBFloat16,
                     .num_micro_batches = 2},
        TrainingCase{.name = "TwoReplicasReshardToPairs",
                     .replicate = 2,
                     .shard = 4,
                     .reshard_after_forward = 2},
        TrainingCase{.name = "OneRankOffloadBf16", .param_dtype = at::kBFloat16, .offload = true},
        TrainingCase{.name = "ThreeRanksOffload", .shard = 3, .offload = true},
        TrainingCase{.name = "TwoReplicasOfTwoShardsOffloadBf16",
                     .replicate = 2,
                     .shard = 2,
                     .param_dtype = at::kBFloat16,
                     .num_micro_batches = 2,
                     .offload = true},
        TrainingCase{.name = "ThreeRanksInline", .shard = 3, .inline_streams = true},
        TrainingCase{
            .name = "MeanOverReplicasAndShards", .replicate = 2, .shard = 2, .divide_factor = 4.0},
        TrainingCase{.name = "MeanOverReplicas", .replicate = 2, .divide_factor = 2.0},
        TrainingCase{.name = "MeanOverRanks", .shard = 2, .divide_factor = 2.0},
        TrainingCase{.name = "DividedOnOneRank", .divide_factor = 3.0}),
    [](const auto& info) { return info.param.name; });

TEST(FullyShardTraining, LossesDoNotDependOnTheNumberOfRanks) {
  // Whole-batch losses of 20 steps. A sum of n fp32 terms taken in another order differs by n u at
  // most (Higham 2002, section 4.2); the longest here has 48 tokens x 11 classes.
  std::map<int, std::vector<double>> losses;
  for (const int ranks : {1, 2, 3, 4}) {
    losses[ranks].resize(20);
    run_ranks_shared(ranks, [&](auto world) {
      const TrainingCase training{.shard = ranks};
      const comm::DeviceMesh mesh(world, 1, -1);
      const auto model = make_sharded_toy({}, mesh, options_of(training));
      ToyAdam adam(locals_of(*model), kParityLearningRate);
      for (int step = 0; step < 20; ++step) {
        const at::Tensor loss = at::zeros({1}, at::kDouble);
        loss.fill_(train_step(*model, adam, training, step, *world));
        world->all_reduce(loss, comm::ReduceOp::kSum);
        if (world->rank() == 0) {
          losses[ranks][step] = loss.item<double>();
        }
      }
    });
  }
  constexpr double kTolerance = 48 * 11 * 5.96e-8;
  for (const int ranks : {2, 3, 4}) {
    for (int step = 0; step < 20; ++step) {
      EXPECT_NEAR(losses[ranks][step], losses[1][step], kTolerance * losses[1][step])
          << ranks << " ranks, step " << step;
    }
  }
}

TEST(FullyShardTraining, GradientsAccumulateOverSynchronisedBackwards) {
  run_ranks_shared(2, [&](auto world) {
    const comm::DeviceMesh mesh(world, 1, 2);
    const auto model = make_sharded_toy({}, mesh, {});
    const ToyBatch batch = slice_of_rank(toy_batch({}, 0, kParityBatch), world->rank(), 2);
    const auto parameters = sharded_parameters(*model);
    model->loss_sum(batch.tokens, batch.targets).backward();
    std::vector<at::Tensor> once;
    for (const auto& parameter : parameters) {
      once.push_back(parameter.local.grad().clone());
    }
    model->loss_sum(batch.tokens, batch.targets).backward();
    for (size_t i = 0; i < parameters.size(); ++i) {
      EXPECT_TRUE(parameters[i].local.grad().equal(once[i].mul(2))) << parameters[i].fqn;
    }
  });
}

TEST(FullyShardTraining, TwoForwardsBeforeTheirBackwards) {
  run_ranks_shared(2, [&](auto world) {
    const comm::DeviceMesh mesh(world, 1, 2);
    const ToyBatch a = slice_of_rank(toy_batch({}, 0, kParityBatch), world->rank(), 2);
    const ToyBatch b = slice_of_rank(toy_batch({}, 1, kParityBatch), world->rank(), 2);
    const auto in_turn = make_sharded_toy({}, mesh, {});
    in_turn->loss_sum(a.tokens, a.targets).backward();
    in_turn->loss_sum(b.tokens, b.targets).backward();
    const auto together = make_sharded_toy({}, mesh, {});
    const at::Tensor loss_a = together->loss_sum(a.tokens, a.targets);
    const at::Tensor loss_b = together->loss_sum(b.tokens, b.targets);
    loss_a.backward();
    loss_b.backward();
    const auto expected = locals_of(*in_turn);
    const auto actual = locals_of(*together);
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_TRUE(actual[i].grad().defined()) << i;
      EXPECT_TRUE(actual[i].grad().equal(expected[i].grad())) << i;
    }
  });
}

TEST(FullyShardTraining, BlockUsedTwiceInOneForward) {
  struct Twice : nn::Layer {
    std::shared_ptr<ToyBlock> block;
    explicit Twice(const at::TensorOptions& options) {
      add_child("block", block, std::make_shared<ToyBlock>(5, 7, options));
    }
    at::Tensor operator()(const at::Tensor& x) {
      return hooked(x, [this](const at::Tensor& y) { return (*block)((*block)(y)); });
    }
  };
  const auto fill = [](const std::string& fqn, at::Tensor shard, int64_t row_begin) {
    initialize_toy(fqn, shard, row_begin);
  };
  const at::Tensor x = at::zeros({3, 5}).add(0.3);
  Twice reference((at::TensorOptions()));
  for (const auto& parameter : reference.named_parameters()) {
    initialize_toy(parameter.key(), parameter.value().detach(), 0);
  }
  reference(x).pow(2).sum().backward();
  run_ranks_shared(2, [&](auto world) {
    const comm::DeviceMesh mesh(world, 1, 2);
    Twice model((at::TensorOptions(at::kMeta)));
    fully_shard(*model.block, mesh);
    fully_shard(model, mesh);
    materialize(model, at::kCPU, fill);
    model(x).pow(2).sum().backward();
    for (const ShardedParameter& parameter : sharded_parameters(model)) {
      const at::Tensor whole = reference.named_parameters()[parameter.fqn].grad().mul(2);
      const at::Tensor expected = whole.narrow(0, parameter.row_begin, parameter.local.size(0));
      // Two uses, summed on the way by autograd there and by two reductions here.
      EXPECT_TRUE(parameter.local.grad().allclose(expected, 1e-6, 1e-6)) << parameter.fqn;
    }
  });
}

TEST(FullyShardTraining, FrozenParametersStayAndGetNoGradient) {
  run_ranks_shared(2, [&](auto world) {
    const comm::DeviceMesh mesh(world, 1, 2);
    auto model = std::make_shared<ToyModel>(ToySpec{}, at::TensorOptions(at::kMeta));
    model->blocks[1]->in->weight.set_requires_grad(false);
    model->embed_tokens->weight.set_requires_grad(false);
    for (const auto& block : model->blocks) {
      fully_shard(*block, mesh);
    }
    fully_shard(*model, mesh);
    materialize(*model, at::kCPU, initialize_toy);
    const ToyBatch batch = slice_of_rank(toy_batch({}, 0, kParityBatch), world->rank(), 2);
    model->loss_sum(batch.tokens, batch.targets).backward();
    for (const ShardedParameter& parameter : sharded_parameters(*model)) {
      const bool frozen =
          parameter.fqn == "embed_tokens.weight" || parameter.fqn == "block1.in.weight";
      EXPECT_EQ(parameter.local.requires_grad(), !frozen) << parameter.fqn;
      EXPECT_EQ(parameter.local.grad().defined(), !frozen) << parameter.fqn;
    }
  });
}

TEST(FullyShardTraining, AStepAfterAFailedOneIsUnaffected) {
  run_ranks_shared(2, [&](auto world) {
    const comm::DeviceMesh mesh(world, 1, 2);
    const ToyBatch batch = slice_of_rank(toy_batch({}, 0, kParityBatch), world->rank(), 2);
    const auto clean = make_sharded_toy({}, mesh, {});
    clean->loss_sum(batch.tokens, batch.targets).backward();

    const auto model = make_sharded_toy({}, mesh, {});
    bool fail = true;
    // Both ranks fail at the same place of backward: a caught out-of-memory error, say.
    model->blocks[1]->in->register_forward_hook([&](at::Tensor y) {
      if (fail) {
        y.register_hook([](const at::Tensor&) { throw std::runtime_error("no"); });
      }
      return y;
    });
    EXPECT_THROW(model->loss_sum(batch.tokens, batch.targets).backward(), std::exception);
    fail = false;
    for (at::Tensor& local : std::vector<at::Tensor>(locals_of(*model))) {
      local.mutable_grad().reset();
    }
    model->loss_sum(batch.tokens, batch.targets).backward();
    const auto expected = locals_of(*clean);
    const auto actual = locals_of(*model);
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_TRUE(actual[i].grad().defined()) << i;
      EXPECT_TRUE(actual[i].grad().equal(expected[i].grad())) << i;
    }
  });
}

TEST(FullyShardTraining, AStepAfterAFailedForwardIsUnaffected) {
  run_ranks_shared(2, [&](auto world) {
    const comm::DeviceMesh mesh(world, 1, 2);
    const ToyBatch batch = slice_of_rank(toy_batch({}, 0, kParityBatch), world->rank(), 2);
    const auto clean = make_sharded_toy({}, mesh, {});
    clean->loss_sum(batch.tokens, batch.targets).backward();
    const auto model = make_sharded_toy({}, mesh, {});
    int fail_at = -1;
    for (int i = 0; i < 3; ++i) {
      model->blocks[i]->in->register_forward_hook([&fail_at, i](at::Tensor y) {
        if (i == fail_at) {
          throw std::runtime_error("no");  // while the next block is gathered
        }
        return y;
      });
    }
    for (fail_at = 0; fail_at < 3; ++fail_at) {
      EXPECT_THROW(model->loss_sum(batch.tokens, batch.targets), std::runtime_error);
      const int failed_at = std::exchange(fail_at, -1);
      for (at::Tensor& local : std::vector<at::Tensor>(locals_of(*model))) {
        local.mutable_grad().reset();
      }
      model->loss_sum(batch.tokens, batch.targets).backward();
      const auto expected = locals_of(*clean);
      const auto actual = locals_of(*model);
      for (size_t i = 0; i < expected.size(); ++i) {
        EXPECT_TRUE(actual[i].grad().equal(expected[i].grad())) << i;
      }
      fail_at = failed_at;
    }
  });
}

// A block that the loss does not see, on all ranks: nothing is reduced for it, and no rank waits.
TEST(FullyShardTraining, UnusedOutputs) {
  struct Unused : nn::Layer {
    std::shared_ptr<ToyBlock> used;
    std::shared_ptr<ToyBlock> unused;
    at::Tensor unused_output;
    explicit Unused(const at::TensorOptions& options) {
      add_child("used", used, std::make_shared<ToyBlock>(5, 7, options));
      add_child("unused", unused, std::make_shared<ToyBlock>(5, 7, options));
    }
    at::Tensor operator()(const at::Tensor& x) {
      return hooked(x, [this](const at::Tensor& y) {
        const at::Tensor z = (*used)(y);
        unused_output = (*unused)(z);
        return z;
      });
    }
  };
  for (const auto& reshard : {std::optional<ReshardAfterForward>(), {true}, {false}}) {
    run_ranks_shared(2, [&](auto world) {
      const comm::DeviceMesh mesh(world, 1, 2);
      Unused model((at::TensorOptions(at::kMeta)));
      fully_shard(*model.used, mesh, {.reshard_after_forward = reshard});
      fully_shard(*model.unused, mesh, {.reshard_after_forward = reshard});
      fully_shard(model, mesh);
      materialize(model, at::kCPU, initialize_toy);
      for (int step = 0; step < 2; ++step) {
        model(at::zeros({3, 5}).add(0.3)).pow(2).sum().backward();
        for (const ShardedParameter& parameter : sharded_parameters(model)) {
          EXPECT_EQ(parameter.local.grad().defined(), parameter.fqn.rfind("used", 0) == 0)
              << parameter.fqn;
        }
        for (const auto& parameter : model.named_parameters()) {
          EXPECT_EQ(parameter.value().storage().nbytes(), 0U) << parameter.key();
        }
      }
    });
  }
}

TEST(FullyShardTraining, ARankThatThrowsInForwardReleasesTheOthers) {
  try {
    run_ranks_shared(3, [&](auto world) {
      const comm::DeviceMesh mesh(world, 1, 3);
      const auto model = make_sharded_toy({}, mesh, {});
      ToyBatch batch = slice_of_rank(toy_batch({}, 0, kParityBatch), world->rank(), 3);
      if (world->rank() == 1) {
        batch.tokens = batch.tokens.add(1000);  // beyond the vocabulary
      }
      model->loss_sum(batch.tokens, batch.targets).backward();
      ADD_FAILURE() << "rank " << world->rank() << " went on";
    });
    FAIL() << "expected the exception of rank 1";
  } catch (const comm::CommunicatorAborted&) {
    FAIL() << "expected rank 1's own exception, got a consequence";
  } catch (const std::exception&) {
  }
}

}  // namespace
}  // namespace narrowgauge::fsdp

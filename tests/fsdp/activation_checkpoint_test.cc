// Activation checkpointing inside sharded training: the same bits, the same collectives.

#include "nn/activation_checkpoint.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fsdp/fully_shard.h"
#include "nn/initialize.h"
#include "tests/fsdp/delaying_communicator.h"
#include "tests/fsdp/toy_model.h"
#include "tests/support/counting_communicator.h"
#include "tests/support/numerics.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::fsdp {
namespace {

using narrowgauge::testing::CollectiveLog;
using narrowgauge::testing::CountingCommunicator;
using narrowgauge::testing::expect_bitwise_equal;
using narrowgauge::testing::run_ranks_shared;

struct ShardedCase {
  std::string name;
  int replicate;
  int shard;
  at::ScalarType param_dtype;
  bool tied;
  std::optional<bool> reshard_after_forward = std::nullopt;
};

// What one rank saw of a run.
struct RunRecord {
  std::vector<at::Tensor> losses;
  std::map<std::string, at::Tensor> parameters;
  int64_t all_gathers = 0;
  int64_t reduce_scatters = 0;
  int64_t all_reduces = 0;
};

nn::TransformerConfig model_config(bool tied) {
  nn::TransformerConfig config;
  config.vocab_size = 29;
  config.dim = 16;
  config.num_layers = 3;
  config.num_heads = 2;
  config.num_kv_heads = 1;
  config.head_dim = 8;
  config.ffn_dim = 26;
  config.max_seq_len = 16;
  config.tie_word_embeddings = tied;
  return config;
}

at::Tensor tokens_of(int64_t step, int64_t micro_batch, int rank) {
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < 2 * 6; ++i) {
    ids.push_back((7 * i * i + 5 * step + 3 * micro_batch + 11 * rank) % 29);
  }
  const at::Tensor tokens = at::empty({2, 6}, at::kLong);
  std::copy(ids.begin(), ids.end(), tokens.mutable_data_ptr<int64_t>());
  return tokens;
}

// Three steps of two micro-batches, the first without a reduction.
RunRecord train(const ShardedCase& sharded, const nn::ActivationCheckpoint& checkpoint,
                const std::shared_ptr<comm::Communicator>& world) {
  const auto log = std::make_shared<CollectiveLog>();
  const comm::DeviceMesh mesh(std::make_shared<CountingCommunicator>(world, log), sharded.replicate,
                              sharded.shard);
  const nn::TransformerConfig config = model_config(sharded.tied);
  nn::Transformer model(config, at::TensorOptions(at::kMeta));
  nn::apply_activation_checkpoint(model, checkpoint);
  FullyShardOptions options;
  options.mp_policy.param_dtype = sharded.param_dtype;
  options.mp_policy.reduce_dtype = at::kFloat;
  options.reshard_after_forward = sharded.reshard_after_forward;
  for (const auto& block : model.layers) {
    fully_shard(*block, mesh, options);
  }
  fully_shard(model, mesh, options);
  materialize(model, at::kCPU, [&](const std::string& fqn, at::Tensor shard, int64_t row_begin) {
    nn::initialize_parameter(config, 3, fqn, shard, row_begin);
  });
  ToyAdam adam(locals_of(model), 1e-2);
  log->clear();
  RunRecord record;
  for (int64_t step = 0; step < 3; ++step) {
    for (int64_t micro_batch = 0; micro_batch < 2; ++micro_batch) {
      set_requires_gradient_sync(model, micro_batch == 1);
      const at::Tensor loss = model.loss_sum(tokens_of(step, micro_batch, world->rank()),
                                             tokens_of(step + 1, micro_batch, world->rank()));
      loss.backward();
      record.losses.push_back(loss.detach());
    }
    adam.step();
  }
  record.all_gathers = log->count("all_gather");
  record.reduce_scatters = log->count("reduce_scatter");
  record.all_reduces = log->count("all_reduce");
  record.parameters = full_parameters(model, mesh);
  return record;
}

class CheckpointedSharding : public ::testing::TestWithParam<ShardedCase> {};

TEST_P(CheckpointedSharding, HasTheBitsAndCollectivesOfThePlainOne) {
  const ShardedCase& sharded = GetParam();
  run_ranks_shared(sharded.replicate * sharded.shard, [&](const auto& world) {
    const RunRecord plain = train(sharded, {}, world);
    for (const nn::ActivationCheckpoint& checkpoint :
         {nn::ActivationCheckpoint{nn::CheckpointMode::kFull, 1},
          nn::ActivationCheckpoint{nn::CheckpointMode::kFull, 2},
          nn::ActivationCheckpoint{nn::CheckpointMode::kSelective, 1}}) {
      // The last rank is late for every collective.
      const std::chrono::milliseconds late(world->rank() + 1 == world->size() ? 1 : 0);
      const RunRecord record =
          train(sharded, checkpoint,
                std::make_shared<DelayingCommunicator>(world, CollectiveDelays{late, late}));
      for (size_t i = 0; i < plain.losses.size(); ++i) {
        expect_bitwise_equal(record.losses[i], plain.losses[i]);
      }
      ASSERT_EQ(record.parameters.size(), plain.parameters.size());
      for (const auto& [name, parameter] : plain.parameters) {
        SCOPED_TRACE(name);
        expect_bitwise_equal(record.parameters.at(name), parameter);
      }
      EXPECT_EQ(record.all_gathers, plain.all_gathers);
      EXPECT_EQ(record.reduce_scatters, plain.reduce_scatters);
      EXPECT_EQ(record.all_reduces, plain.all_reduces);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(
    Meshes, CheckpointedSharding,
    ::testing::Values(ShardedCase{"One", 1, 1, at::kFloat, false},
                      ShardedCase{"OneBf16", 1, 1, at::kBFloat16, true},
                      ShardedCase{"Two", 1, 2, at::kFloat, true},
                      ShardedCase{"TwoBf16", 1, 2, at::kBFloat16, false},
                      ShardedCase{"FourBf16Tied", 1, 4, at::kBFloat16, true},
                      ShardedCase{"FourKeptGathered", 1, 4, at::kFloat, false, false},
                      ShardedCase{"FourAlwaysFreed", 1, 4, at::kFloat, false, true},
                      ShardedCase{"TwoByTwo", 2, 2, at::kBFloat16, false},
                      ShardedCase{"Replicated", 2, 1, at::kBFloat16, true}),
    [](const auto& info) { return info.param.name; });

// Two blocks that are sharded on their own below one layer, which is recomputed as a whole.
class Stage : public nn::Layer {
 public:
  Stage() {
    for (int i = 0; i < 2; ++i) {
      add_child("block" + std::to_string(i), blocks[i],
                std::make_shared<ToyBlock>(5, 7, at::TensorOptions(at::kMeta)));
    }
  }
  at::Tensor operator()(const at::Tensor& x) {
    return hooked(x, [this](const at::Tensor& input) { return (*blocks[1])((*blocks[0])(input)); });
  }
  std::shared_ptr<ToyBlock> blocks[2];
};

class StagedModel : public nn::Layer {
 public:
  StagedModel() {
    add_child("first", first, std::make_shared<ToyBlock>(5, 7, at::TensorOptions(at::kMeta)));
    add_child("stage", stage, std::make_shared<Stage>());
    add_child("last", last,
              std::make_shared<nn::Linear>(nn::LinearSpec{5, 3}, at::TensorOptions(at::kMeta)));
  }
  at::Tensor operator()(const at::Tensor& x) {
    return hooked(x,
                  [this](const at::Tensor& input) { return (*last)((*stage)((*first)(input))); });
  }
  std::shared_ptr<ToyBlock> first;
  std::shared_ptr<Stage> stage;
  std::shared_ptr<nn::Linear> last;
};

std::map<std::string, at::Tensor> train_staged(const std::shared_ptr<comm::Communicator>& world,
                                               bool recompute) {
  const comm::DeviceMesh mesh(world, 1, -1);
  StagedModel model;
  if (recompute) {
    nn::recompute_forward(*model.stage);
  }
  FullyShardOptions options;
  options.mp_policy.reduce_dtype = at::kFloat;
  for (nn::Layer* layer :
       {static_cast<nn::Layer*>(model.first.get()),
        static_cast<nn::Layer*>(model.stage->blocks[0].get()),
        static_cast<nn::Layer*>(model.stage->blocks[1].get()), static_cast<nn::Layer*>(&model)}) {
    fully_shard(*layer, mesh, options);
  }
  materialize(model, at::kCPU, initialize_toy);
  ToyAdam adam(locals_of(model), 1e-2);
  for (int step = 0; step < 3; ++step) {
    model(at::ones({4, 5}).mul(0.1 * (world->rank() + step + 1))).square().sum().backward();
    adam.step();
  }
  return full_parameters(model, mesh);
}

TEST(CheckpointedSharding, RecomputedRegionMayHoldShardedLayers) {
  for (const int size : {1, 2, 4}) {
    run_ranks_shared(size, [&](const auto& world) {
      const auto expected = train_staged(world, false);
      const auto actual = train_staged(world, true);
      for (const auto& [name, parameter] : expected) {
        SCOPED_TRACE(name);
        expect_bitwise_equal(actual.at(name), parameter);
      }
    });
  }
}

// Every rank fails in the middle of backward's recomputation; the next step starts anew.
TEST(CheckpointedSharding, FailedRecomputationLeavesTheModelUsable) {
  run_ranks_shared(2, [](const auto& world) {
    const comm::DeviceMesh mesh(world, 1, 2);
    const nn::TransformerConfig config = model_config(false);
    nn::Transformer model(config, at::TensorOptions(at::kMeta));
    nn::apply_activation_checkpoint(model, {nn::CheckpointMode::kFull, 1});
    for (const auto& block : model.layers) {
      fully_shard(*block, mesh);
    }
    fully_shard(model, mesh);
    materialize(model, at::kCPU, [&](const std::string& fqn, at::Tensor shard, int64_t row_begin) {
      nn::initialize_parameter(config, 3, fqn, shard, row_begin);
    });
    int calls = 0;
    model.layers[1]->mlp->register_forward_pre_hook([&](at::Tensor x) {
      TORCH_CHECK(++calls != 2, "out of luck");
      return x;
    });
    const auto step = [&] {
      const at::Tensor loss =
          model.loss_sum(tokens_of(0, 0, world->rank()), tokens_of(1, 0, world->rank()));
      loss.backward();
      return loss.template item<float>();
    };
    EXPECT_THROW(step(), c10::Error);
    for (const at::Tensor& local : locals_of(model)) {
      local.mutable_grad().reset();  // blocks behind the failing one had theirs already
    }
    EXPECT_GT(step(), 0.0F);
    for (const at::Tensor& local : locals_of(model)) {
      EXPECT_TRUE(local.grad().defined());
    }
  });
}

}  // namespace
}  // namespace narrowgauge::fsdp

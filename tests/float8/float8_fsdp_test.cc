// Float8Linears under FSDP: the same losses as without sharding, bytes on the wire, casts made
// once, delayed scaling across ranks, health.

#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/stack.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "float8/convert.h"
#include "float8/float8_linear.h"
#include "float8/float8_training.h"
#include "float8/fsdp_extension.h"
#include "fsdp/fully_shard.h"
#include "tests/fsdp/toy_model.h"
#include "tests/support/counting_communicator.h"
#include "tests/support/numerics.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::float8 {
namespace {

using fsdp::ToyModel;
using fsdp::ToySpec;
using narrowgauge::testing::CollectiveLog;
using narrowgauge::testing::CountingCommunicator;
using narrowgauge::testing::run_ranks_shared;

struct Setting {
  std::string recipe = "tensorwise";
  bool float8_on_wire = true;
  int replicate = 1;
  int shard = 1;
  std::optional<at::ScalarType> param_dtype = at::kBFloat16;
  std::optional<bool> reshard_after_forward = std::nullopt;
  int micro_batches = 1;
  ToySpec spec = {};
  std::string frozen = "";  // a parameter
};

Float8LinearConfig config_of(const Setting& setting) {
  auto config = Float8LinearConfig::from_recipe_name(setting.recipe);
  config.enable_fsdp_float8_all_gather = setting.float8_on_wire;
  return config;
}

// Built on meta, converted, each block and the root sharded, filled.
std::shared_ptr<ToyModel> make_model(const Setting& setting, const comm::DeviceMesh& mesh) {
  auto model = std::make_shared<ToyModel>(setting.spec, at::TensorOptions(at::kMeta));
  convert_to_float8_training(*model, config_of(setting));
  for (const auto& parameter : model->named_parameters()) {
    parameter.value().set_requires_grad(parameter.key() != setting.frozen);
  }
  const auto shard = [&](nn::Layer& layer, bool keeps_by_default) {
    fsdp::FullyShardOptions options{
        .mp_policy = {.param_dtype = setting.param_dtype, .reduce_dtype = at::kFloat},
        .reshard_after_forward = setting.reshard_after_forward};
    options.make_extension = float8_param_extension(
        setting.param_dtype,
        {.num_shards = setting.shard,
         .kept_after_forward = !setting.reshard_after_forward.value_or(!keeps_by_default)});
    fsdp::fully_shard(layer, mesh, options);
  };
  for (const auto& block : model->blocks) {
    shard(*block, false);
  }
  shard(*model, true);
  fsdp::materialize(*model, at::kCPU, fsdp::initialize_toy);
  return model;
}

struct Rank {
  comm::DeviceMesh mesh;
  std::shared_ptr<ToyModel> model;
  Float8Training training;
  fsdp::ToyAdam optimizer;
  std::shared_ptr<CollectiveLog> log;
};

void with_ranks(const Setting& setting, const std::function<void(Rank&)>& body) {
  run_ranks_shared(setting.replicate * setting.shard, [&](auto world) {
    const auto log = std::make_shared<CollectiveLog>();
    const comm::DeviceMesh mesh(std::make_shared<CountingCommunicator>(world, log),
                                setting.replicate, setting.shard);
    const auto model = make_model(setting, mesh);
    Rank rank{mesh, model, Float8Training(*model, mesh),
              fsdp::ToyAdam(fsdp::locals_of(*model), 1e-2), log};
    rank.training.refresh();
    log->clear();
    body(rank);
  });
}

// Forward and backward of this rank's part of the global batch; its loss.
double accumulate(const Setting& setting, Rank& rank, int64_t step) {
  const int size = rank.mesh.world().size();
  const auto batch =
      fsdp::slice_of_rank(fsdp::toy_batch(setting.spec, step, 16), rank.mesh.world().rank(), size);
  double loss = 0;
  for (int i = 0; i < setting.micro_batches; ++i) {
    const auto micro = fsdp::slice_of_rank(batch, i, setting.micro_batches);
    fsdp::set_requires_gradient_sync(*rank.model, i == setting.micro_batches - 1);
    const at::Tensor sum = rank.model->loss_sum(micro.tokens, micro.targets).div(64.0);
    sum.backward();
    loss += sum.item<double>();
  }
  return loss;
}

struct Outcome {
  std::vector<std::vector<double>> losses;  // [step][rank]
  std::map<std::string, at::Tensor> parameters;
};

Outcome train(const Setting& setting, int steps = 10) {
  Outcome outcome;
  outcome.losses.assign(steps, std::vector<double>(setting.replicate * setting.shard));
  with_ranks(setting, [&](Rank& rank) {
    for (int step = 0; step < steps; ++step) {
      outcome.losses[step][rank.mesh.world().rank()] = accumulate(setting, rank, step);
      rank.optimizer.step();
      rank.training.after_optimizer_step();
    }
    auto parameters = fsdp::full_parameters(*rank.model, rank.mesh);
    if (rank.mesh.world().rank() == 0) {
      outcome.parameters = std::move(parameters);
    }
  });
  return outcome;
}

void expect_equal(const Outcome& a, const Outcome& b, const std::string& what) {
  EXPECT_EQ(a.losses, b.losses) << what;
  for (const auto& [name, value] : a.parameters) {
    EXPECT_TRUE(at::equal(value, b.parameters.at(name))) << what << ": " << name;
  }
}

const std::vector<std::string> kGatheredRecipes = {"tensorwise", "rowwise", "rowwise_with_gw_hp",
                                                   "delayed"};

// Replicas hold whole weights and exchange gradients alone: fp8 without sharding. Sharded, each
// rank casts its rows with scales that all agree on, so codes are the same and losses are
// bit-equal; dim 5 on 4 ranks leaves the last shards short and empty.
TEST(Float8FSDP, LossesEqualThoseWithoutShardingForTenSteps) {
  for (const std::string& recipe : kGatheredRecipes) {
    for (const auto param_dtype : {at::kFloat, at::kBFloat16}) {
      for (const int ranks : {2, 4}) {
        const Setting whole{.recipe = recipe, .replicate = ranks, .param_dtype = param_dtype};
        const Setting sharded{.recipe = recipe, .shard = ranks, .param_dtype = param_dtype};
        expect_equal(train(whole), train(sharded), recipe + " on " + std::to_string(ranks));
      }
    }
  }
}

TEST(Float8FSDP, EveryRecipeWithoutFloat8OnTheWire) {
  for (const std::string_view recipe : recipe_names()) {
    const Setting whole{.recipe = std::string(recipe), .float8_on_wire = false, .replicate = 3};
    Setting sharded = whole;
    sharded.replicate = 1;
    sharded.shard = 3;
    expect_equal(train(whole, 4), train(sharded, 4), std::string(recipe));
  }
}

// In fp32 both wires bring the same values to the same cast, whatever the mesh.
TEST(Float8FSDP, BothWiresAgreeInFp32) {
  for (const std::string& recipe : kGatheredRecipes) {
    for (const auto& [replicate, shard] : {std::pair{1, 1}, {1, 4}, {2, 2}}) {
      Setting setting{
          .recipe = recipe, .replicate = replicate, .shard = shard, .param_dtype = at::kFloat};
      const Outcome float8 = train(setting, 5);
      setting.float8_on_wire = false;
      expect_equal(float8, train(setting, 5), recipe);
    }
  }
}

TEST(Float8FSDP, MicroBatchesReshardingAndFrozenWeights) {
  for (const std::string& recipe : kGatheredRecipes) {
    for (const std::optional<bool> reshard : {std::optional<bool>(), {true}, {false}}) {
      Setting whole{.recipe = recipe,
                    .replicate = 2,
                    .reshard_after_forward = reshard,
                    .micro_batches = 4,
                    .frozen = "block1.in.weight"};
      Setting sharded = whole;
      std::swap(sharded.replicate, sharded.shard);
      expect_equal(train(whole, 3), train(sharded, 3), recipe);
    }
  }
}

struct WireBytes {
  int64_t forward = 0;
  int64_t backward = 0;
  std::vector<int64_t> all_reduces;  // after the optimizer step
};

WireBytes count_bytes(const Setting& setting) {
  WireBytes bytes;
  std::mutex mutex;
  with_ranks(setting, [&](Rank& rank) {
    const auto gathered = [&] {
      int64_t total = 0;
      for (const auto& record : rank.log->records()) {
        total += record.operation == "all_gather" ? record.size_bytes : 0;
      }
      rank.log->clear();
      return total;
    };
    const auto batch = fsdp::toy_batch(setting.spec, 0, 4);
    const at::Tensor loss = rank.model->loss_sum(batch.tokens, batch.targets);
    const int64_t forward = gathered();
    loss.backward();
    const int64_t backward = gathered();
    rank.optimizer.step();
    rank.log->clear();
    rank.training.after_optimizer_step();
    const std::lock_guard lock(mutex);
    bytes = {forward, backward, {}};
    for (const auto& record : rank.log->records()) {
      EXPECT_EQ(record.operation, "all_reduce");
      bytes.all_reduces.push_back(record.size_bytes);
    }
  });
  return bytes;
}

// torchao's test_fp8_fp32_all_gather_dynamic_comm_size, and rowwise, which it does not have: in
// forward and in backward a weight is one byte an element, and 4 bytes a row where scales are by
// row and output reads it. Two blocks are gathered twice, the root once.
TEST(Float8FSDP, BytesOnTheWire) {
  constexpr int64_t kDim = 32, kHidden = 64, kVocab = 48, kBlocks = 2;
  const ToySpec spec{.vocab = kVocab, .dim = kDim, .hidden = kHidden, .num_blocks = kBlocks};
  constexpr int64_t kBlockWeights = 2 * kDim * kHidden;
  constexpr int64_t kBlockRows = kDim + kHidden;
  constexpr int64_t kBiasBytes = 2 * kBlockRows;     // bf16
  constexpr int64_t kEmbedding = 2 * kVocab * kDim;  // bf16
  constexpr int64_t kHead = kVocab * kDim;
  const Setting tensorwise{.shard = 2, .spec = spec};
  WireBytes bytes = count_bytes(tensorwise);
  EXPECT_EQ(bytes.forward, kBlocks * (kBlockWeights + kBiasBytes) + kEmbedding + kHead);
  EXPECT_EQ(bytes.backward, kBlocks * (kBlockWeights + kBiasBytes));
  EXPECT_EQ(bytes.all_reduces, (std::vector<int64_t>{4 * (2 * kBlocks + 1)}));

  Setting rowwise = tensorwise;
  rowwise.recipe = "rowwise";
  bytes = count_bytes(rowwise);
  // The root is kept for backward, so its gather brings both operands of the head.
  EXPECT_EQ(bytes.forward, kBlocks * (kBlockWeights + 4 * kBlockRows + kBiasBytes) + kEmbedding +
                               2 * kHead + 4 * kVocab);
  EXPECT_EQ(bytes.backward, kBlocks * (kBlockWeights + kBiasBytes));
  EXPECT_EQ(bytes.all_reduces,
            (std::vector<int64_t>{4 * (kBlocks * (kDim + kHidden) + kDim)}));  // amax by column

  Setting delayed = tensorwise;
  delayed.recipe = "delayed";
  delayed.replicate = 2;
  bytes = count_bytes(delayed);
  EXPECT_EQ(bytes.forward, kBlocks * (kBlockWeights + kBiasBytes) + kEmbedding + kHead);
  // The first step: three histories a layer, and weights without one yet.
  EXPECT_EQ(bytes.all_reduces, (std::vector<int64_t>{4 * 4 * (2 * kBlocks + 1)}));

  Setting bf16 = tensorwise;
  bf16.float8_on_wire = false;
  bytes = count_bytes(bf16);
  EXPECT_EQ(bytes.forward, kBlocks * (2 * kBlockWeights + kBiasBytes) + kEmbedding + 2 * kHead);
  EXPECT_TRUE(bytes.all_reduces.empty());
}

WeightGather& gather_of(nn::Linear& linear) {
  return *dynamic_cast<Float8Linear&>(linear).state().gather;
}

TEST(Float8FSDP, WeightsAreCastOncePerOptimizerStep) {
  for (const std::string_view recipe : recipe_names()) {
    const Setting setting{.recipe = std::string(recipe), .float8_on_wire = false};
    with_ranks(setting, [&](Rank& rank) {
      nn::Linear& linear = *rank.model->blocks[1]->in;
      const auto run_micro_batch = [&](int64_t number) {
        fsdp::set_requires_gradient_sync(*rank.model, false);
        const auto batch = fsdp::toy_batch(setting.spec, number, 4);
        rank.model->loss_sum(batch.tokens, batch.targets).backward();
      };
      run_micro_batch(0);
      const at::Tensor dim1 = gather_of(linear).dim1().data;
      const at::Tensor dim0 = gather_of(linear).dim0().data;
      run_micro_batch(1);
      EXPECT_TRUE(gather_of(linear).dim1().data.is_same(dim1));
      EXPECT_TRUE(gather_of(linear).dim0().data.is_same(dim0));
      rank.optimizer.step();
      rank.training.after_optimizer_step();
      accumulate(setting, rank, 2);
      EXPECT_FALSE(gather_of(linear).dim1().data.is_same(dim1));
    });
  }
}

TEST(WeightGather, ShardIsCastOnceAndStaleScalesAreRefused) {
  Operand weight({}, {}, 1, AmaxComputeAlgo::kMax);
  WeightGather gather(weight, 6, at::kBFloat16, true, {.num_shards = 2});
  const at::Tensor shard = at::randn({3, 8});
  const auto agree = [&] { gather.end_agreement(gather.begin_agreement(shard).clone()); };
  EXPECT_THROW(gather.pack(shard), c10::Error);
  agree();
  const at::Tensor packed = gather.pack(shard).at(0);
  EXPECT_EQ(packed.scalar_type(), at::kFloat8_e4m3fn);
  EXPECT_TRUE(gather.pack(shard).at(0).is_same(packed));
  shard.mul_(2);
  try {
    gather.pack(shard);
    FAIL() << "a weight that changed after its scale";
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find("after every optimizer step"), std::string::npos);
  }
  agree();
  EXPECT_FALSE(gather.pack(shard).at(0).is_same(packed));
  EXPECT_THROW(gather.dim1(), c10::Error);  // not gathered
}

// A gather in backward brings grad_input's operand, and output's too where forward runs again.
TEST(WeightGather, PhasesBringTheirOperands) {
  const auto rowwise = Float8LinearConfig::from_recipe_name("rowwise");
  for (const bool kept : {false, true}) {
    Operand weight(rowwise.cast_config_weight, rowwise.cast_config_weight_for_grad_input, 1,
                   AmaxComputeAlgo::kMax);
    WeightGather gather(weight, 2, at::kBFloat16, true,
                        {.num_shards = 2, .kept_after_forward = kept});
    const at::Tensor shard = at::randn({1, 16});
    gather.end_agreement(gather.begin_agreement(shard).clone());
    std::vector<at::Tensor> outputs;
    for (const at::Tensor& input : gather.pack(shard)) {
      outputs.push_back(at::stack({input, input}));
    }
    EXPECT_EQ(outputs.size(), kept ? 3u : 2u);  // codes and a scale for each row; codes
    gather.unpack(outputs);
    EXPECT_EQ(gather.dim1().rows(), 2);
    if (kept) {
      EXPECT_EQ(gather.dim0().cols(), 16);
    } else {
      EXPECT_THROW(gather.dim0(), c10::Error);
    }
  }
}

TEST(Float8Training, HistoriesAreEqualOnAllRanksAndSurviveARestart) {
  const Setting setting{.recipe = "delayed", .shard = 2};
  std::vector<double> straight(2), resumed(2);
  std::map<std::string, at::Tensor> saved;
  std::vector<std::map<std::string, at::Tensor>> histories(2);
  std::map<std::string, at::Tensor> parameters;
  with_ranks(setting, [&](Rank& rank) {
    const int r = rank.mesh.world().rank();
    for (int step = 0; step < 3; ++step) {
      accumulate(setting, rank, step);
      // Plain SGD, whose state is the parameters alone.
      for (const at::Tensor& local : fsdp::locals_of(*rank.model)) {
        const c10::NoGradGuard no_grad;
        local.detach().add_(local.grad(), -0.05);
        local.mutable_grad().reset();
      }
      rank.training.after_optimizer_step();
    }
    for (const auto& [name, values] : rank.training.named_buffers()) {
      histories[r][name] = values.clone();
    }
    auto full = fsdp::full_parameters(*rank.model, rank.mesh);
    if (r == 0) {
      parameters = full;
    }
    straight[r] = accumulate(setting, rank, 3);
  });
  EXPECT_EQ(histories[0].size(), 3u * (2 * 3 + 1));
  ASSERT_TRUE(histories[0].contains("block1.in.grad_output.amax_history"));
  for (const auto& [name, values] : histories[0]) {
    EXPECT_TRUE(at::equal(values, histories[1].at(name))) << name;
    EXPECT_GT(values[2].item<float>(), 0.0F) << name;
    EXPECT_EQ(values[3].item<float>(), 0.0F) << name;
  }
  with_ranks(setting, [&](Rank& rank) {
    const int r = rank.mesh.world().rank();
    fsdp::materialize(*rank.model, at::kCPU,
                      [&](const std::string& fqn, at::Tensor shard, int64_t row_begin) {
                        shard.copy_(parameters.at(fqn).narrow(0, row_begin, shard.size(0)));
                      });
    for (const auto& [name, values] : rank.training.named_buffers()) {
      values.copy_(histories[r].at(name));
    }
    rank.training.refresh();
    resumed[r] = accumulate(setting, rank, 3);
  });
  EXPECT_EQ(straight, resumed);
}

TEST(Float8Training, NotFiniteAmaxNamesTheLayer) {
  const Setting setting{.recipe = "delayed", .shard = 2};
  with_ranks(setting, [&](Rank& rank) {
    accumulate(setting, rank, 0);
    rank.training.after_optimizer_step();
    if (rank.mesh.world().rank() == 1) {
      auto& linear = dynamic_cast<Float8Linear&>(*rank.model->blocks[2]->out);
      const at::Tensor x = at::randn({4, setting.spec.hidden}).set_requires_grad(true);
      x.detach()[0][0].fill_(std::numeric_limits<double>::infinity());
      linear.state().input.cast(x.detach(), true, true, /*training=*/true);
    }
    try {
      rank.training.after_optimizer_step();
      FAIL() << "an infinite activation went unnoticed";
    } catch (const c10::Error& error) {
      EXPECT_NE(std::string(error.what()).find("input of block2.out"), std::string::npos)
          << error.what();
    }
  });
}

TEST(Float8Training, HealthIsSummedOverRanks) {
  const Setting setting{.recipe = "tensorwise", .shard = 2};
  with_ranks(setting, [&](Rank& rank) {
    rank.training.sample_health(true);
    accumulate(setting, rank, 0);
    const auto health = rank.training.take_health();
    ASSERT_EQ(health.size(), 3u * (2 * 3 + 1));
    EXPECT_EQ(health[0].layer, "block0.in");
    EXPECT_EQ(health[0].operand, "input");
    EXPECT_EQ(health[0].health.num_elements, 16 * 4 * setting.spec.dim);  // the global batch
    for (const NamedHealth& operand : health) {
      EXPECT_GT(operand.health.scale_min, 0.0);
      EXPECT_LE(operand.health.scale_min, operand.health.scale_max);
      EXPECT_GE(operand.health.num_saturated, 1.0);  // the largest element is the largest code
      EXPECT_LT(operand.health.num_underflowed, operand.health.num_elements);
    }
    rank.training.sample_health(false);
    accumulate(setting, rank, 1);
    EXPECT_TRUE(rank.training.take_health().empty());
  });
}

}  // namespace
}  // namespace narrowgauge::float8

// FakeQuantizedLinears under FSDP: the losses of one rank whatever the number of ranks, each rank's
// rows quantized once, recomputation, a late start.

#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "fsdp/fully_shard.h"
#include "qat/fsdp_extension.h"
#include "qat/learned_range.h"
#include "qat/prepare.h"
#include "tests/fsdp/toy_model.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::qat {
namespace {

using fsdp::ToyModel;
using fsdp::ToySpec;
using narrowgauge::testing::run_ranks_shared;

// Groups of 32 divide both; no number of ranks divides the rows of all.
const ToySpec kSpec{.vocab = 11, .dim = 32, .hidden = 96, .num_blocks = 2, .tied = false};

struct Setting {
  std::string scheme = "8da4w";
  int replicate = 1;
  int shard = 1;
  at::ScalarType param_dtype = at::kBFloat16;
  std::optional<bool> reshard_after_forward = std::nullopt;
  int micro_batches = 1;
  int enable_after = 0;  // steps
  bool learned_ranges = false;
};

// A range begins as that of the same rows of its weight.
void initialize(const std::string& fqn, const at::Tensor& shard, int64_t row_begin,
                const std::map<std::string, LayerDecision>& layers) {
  if (!is_learned_range(fqn)) {
    fsdp::initialize_toy(fqn, shard, row_begin);
    return;
  }
  const LayerDecision& layer = layers.at(fqn.substr(0, fqn.rfind('.')));
  const at::Tensor weight = at::zeros({shard.size(0), layer.cols});
  fsdp::initialize_toy(layer.fqn + ".weight", weight, row_begin);
  const LearnedRange range = initial_range(weight, layer.scheme->weight);
  shard.copy_(fqn.ends_with(kScaleName) ? range.scale : range.zero_point);
}

std::shared_ptr<ToyModel> make_model(const Setting& setting, const comm::DeviceMesh& mesh) {
  auto model = std::make_shared<ToyModel>(kSpec, at::TensorOptions(at::kMeta));
  PrepareConfig config;
  config.scheme = quantization::parse_scheme(setting.scheme);
  config.learned_ranges = setting.learned_ranges;
  std::map<std::string, LayerDecision> layers;
  for (const LayerDecision& decision : prepare(*model, config)) {
    layers.emplace(decision.fqn, decision);
  }
  EXPECT_EQ(prepared_layers(*model).size(), 4U);
  const auto shard = [&](nn::Layer& layer) {
    fsdp::FullyShardOptions options{
        .mp_policy = {.param_dtype = setting.param_dtype, .reduce_dtype = at::kFloat},
        .reshard_after_forward = setting.reshard_after_forward};
    options.make_extension = fake_quantize_extension(setting.param_dtype, /*offloaded=*/false);
    fsdp::fully_shard(layer, mesh, options);
  };
  for (const auto& block : model->blocks) {
    shard(*block);
  }
  shard(*model);
  fsdp::materialize(*model, at::kCPU,
                    [&](const std::string& fqn, const at::Tensor& shard, int64_t row_begin) {
                      initialize(fqn, shard, row_begin, layers);
                    });
  return model;
}

struct Outcome {
  std::vector<double> losses;  // of each step, over all ranks
  std::map<std::string, at::Tensor> parameters;
};

Outcome train(const Setting& setting, int steps = 5) {
  Outcome outcome;
  const int size = setting.replicate * setting.shard;
  std::vector<std::vector<double>> losses(steps, std::vector<double>(size));
  run_ranks_shared(size, [&](auto world) {
    const comm::DeviceMesh mesh(world, setting.replicate, setting.shard);
    const auto model = make_model(setting, mesh);
    fsdp::ToyAdam optimizer(fsdp::locals_of(*model), 1e-2);
    for (int step = 0; step < steps; ++step) {
      set_fake_quant_enabled(*model, step >= setting.enable_after);
      const auto batch = fsdp::slice_of_rank(fsdp::toy_batch(kSpec, step, 16), world->rank(), size);
      for (int i = 0; i < setting.micro_batches; ++i) {
        const auto micro = fsdp::slice_of_rank(batch, i, setting.micro_batches);
        fsdp::set_requires_gradient_sync(*model, i == setting.micro_batches - 1);
        const at::Tensor loss = model->loss_sum(micro.tokens, micro.targets).div(64.0);
        loss.backward();
        losses[step][world->rank()] += loss.template item<double>();
      }
      optimizer.step();
    }
    auto parameters = fsdp::full_parameters(*model, mesh);
    if (world->rank() == 0) {
      outcome.parameters = std::move(parameters);
    }
  });
  for (const auto& of_ranks : losses) {
    double sum = 0;
    for (const double loss : of_ranks) {
      sum += loss;
    }
    outcome.losses.push_back(sum);
  }
  return outcome;
}

void expect_equal(const Outcome& a, const Outcome& b, const std::string& what) {
  EXPECT_EQ(a.losses, b.losses) << what;
  for (const auto& [name, value] : a.parameters) {
    EXPECT_TRUE(at::equal(value, b.parameters.at(name))) << what << ": " << name;
  }
}

const std::vector<std::string> kSchemes = {"8da4w",
                                           "int4-weight-only group_size=32",
                                           "int8-dynamic-act-int8-weight",
                                           "float8-dynamic-act-float8-weight",
                                           "float8-weight-only granularity=per_tensor",
                                           "mxfp4",
                                           "nvfp4",
                                           "gguf-q4_0"};

// Replicas hold whole weights and exchange gradients alone: fake quantization without sharding.
TEST(QATFSDP, LossesEqualThoseWithoutSharding) {
  for (const std::string& scheme : kSchemes) {
    for (const int ranks : {2, 4}) {
      const Setting whole{.scheme = scheme, .replicate = ranks};
      const Setting sharded{.scheme = scheme, .shard = ranks};
      expect_equal(train(whole), train(sharded), scheme + " on " + std::to_string(ranks));
    }
  }
}

TEST(QATFSDP, MicroBatchesReshardingAndALateStart) {
  for (const std::string& scheme : {kSchemes[0], kSchemes[6]}) {
    for (const std::optional<bool> reshard : {std::optional<bool>(), {true}, {false}}) {
      const Setting whole{.scheme = scheme,
                          .replicate = 2,
                          .reshard_after_forward = reshard,
                          .micro_batches = 2,
                          .enable_after = 2};
      Setting sharded = whole;
      std::swap(sharded.replicate, sharded.shard);
      expect_equal(train(whole), train(sharded), scheme);
    }
  }
}

TEST(QATFSDP, LearnedRangesAreShardedWithTheirWeights) {
  for (const std::string& scheme : {kSchemes[0], kSchemes[1]}) {
    for (const std::optional<bool> reshard : {std::optional<bool>(), {false}}) {
      for (const int enable_after : {0, 2}) {
        const Setting whole{.scheme = scheme,
                            .replicate = 4,
                            .reshard_after_forward = reshard,
                            .micro_batches = 2,
                            .enable_after = enable_after,
                            .learned_ranges = true};
        Setting sharded = whole;
        std::swap(sharded.replicate, sharded.shard);
        const Outcome outcome = train(sharded);
        expect_equal(train(whole), outcome, scheme);
        EXPECT_TRUE(outcome.parameters.contains("block0.in.weight_scale"));
        EXPECT_EQ(outcome.parameters.contains("block0.in.weight_zero_point"),
                  scheme == kSchemes[1]);
      }
    }
  }
  const auto with_ranges = [](bool learned) {
    return train({.shard = 2, .learned_ranges = learned});
  };
  EXPECT_NE(with_ranges(true).losses, with_ranges(false).losses);
}

TEST(QATFSDP, ALateStartIsPlainUntilThen) {
  const Outcome late = train({.enable_after = 2}, 3);
  const Outcome never = train({.enable_after = 99}, 3);
  const Outcome always = train({}, 3);
  EXPECT_EQ(late.losses[0], never.losses[0]);
  EXPECT_EQ(late.losses[1], never.losses[1]);
  EXPECT_NE(late.losses[2], never.losses[2]);
  EXPECT_NE(always.losses[0], never.losses[0]);
}

}  // namespace
}  // namespace narrowgauge::qat

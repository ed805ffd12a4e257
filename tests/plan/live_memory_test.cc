// The memory model against the bytes that real steps allocate, counted tensor by tensor.

#include <ATen/ops/randint.h>
#include <gtest/gtest.h>

#include <cstdio>

#include "comm/device_mesh.h"
#include "fsdp/clip_grad_norm.h"
#include "fsdp/fully_shard.h"
#include "plan/memory_model.h"
#include "tests/plan/counting_allocator.h"
#include "tests/support/run_ranks.h"
#include "trainer/build_model.h"
#include "trainer/build_optimizer.h"
#include "trainer/config_reader.h"
#include "trainer/planned_run.h"

namespace narrowgauge::trainer {
namespace {

constexpr double kWithin = 0.10;
// The plan does not know of float8.emulate: it lies between the two.
constexpr double kWithinFloat8 = 0.12;

TrainConfig read(const std::string& model, const std::vector<std::string>& overrides) {
  return read_config_text(
      "job: {run_dir: x}\ntokenizer: {kind: none}\ndata: {train: [random_tokens]}\nmodel: {" +
          model + "}\n",
      "test", overrides);
}

void run_step(const TrainConfig& config, const RankPlan& ranks, nn::Transformer& model,
              const std::vector<fsdp::ShardedParameter>& parameters, const comm::DeviceMesh& mesh,
              optim::Optimizer& optimizer) {
  for (int64_t i = 0; i < ranks.accumulation_steps; ++i) {
    fsdp::set_requires_gradient_sync(model, i + 1 == ranks.accumulation_steps);
    const at::Tensor tokens =
        at::randint(config.model.vocab_size,
                    {config.training.local_batch_size, config.training.seq_len}, at::kLong);
    const at::Tensor loss = model.loss_sum(tokens, tokens, 0.01);
    if (i + 1 == ranks.accumulation_steps) {
      optimizer.begin_last_backward(1e-4);
    }
    loss.backward();
  }
  fsdp::total_grad_norm(parameters, mesh, 2.0, optimizer.applied_gradient_norms());
  optimizer.step(1e-4, 1.0);
  optimizer.zero_grad();
}

// Peak bytes of all ranks together in the second step.
double measured_peak(const TrainConfig& config, const RankPlan& ranks) {
  testing::CountingAllocator counter;
  testing::run_ranks_shared(
      static_cast<int>(ranks.world_size()), [&](std::shared_ptr<comm::Communicator> world) {
        const comm::DeviceMesh mesh(world, static_cast<int>(ranks.replicate_degree),
                                    static_cast<int>(ranks.shard_degree));
        const BuiltModel built = build_model(config, mesh, at::kCPU, InitialValues::kFresh);
        const auto& model = built.model;
        const auto parameters = fsdp::sharded_parameters(*model);
        const auto optimizer = build_optimizer(config, *model, parameters, mesh);
        run_step(config, ranks, *model, parameters, mesh, *optimizer);
        comm::barrier(*world);
        if (world->rank() == 0) {
          counter.reset_peak();
        }
        comm::barrier(*world);
        run_step(config, ranks, *model, parameters, mesh, *optimizer);
      });
  return static_cast<double>(counter.peak_bytes());
}

void expect_planned(const char* name, const TrainConfig& config, int64_t world_size = 1,
                    double within = kWithin) {
  const RankPlan ranks = plan_ranks(config, world_size);
  const plan::Hardware cpu = plan::cpu_hardware(1);
  const plan::MemoryPlan plan = plan::plan_memory(training_spec(config, ranks), cpu);
  const double process = plan.peak.of_kind[static_cast<size_t>(plan::Kind::kProcess)];
  const double planned = (plan.peak.total() - process) * static_cast<double>(world_size);
  const double measured = measured_peak(config, ranks);
  std::printf("%-22s planned %8.2f MB, measured %8.2f MB, %+5.1f %% (%s)\n", name, planned / 1e6,
              measured / 1e6, 100 * (planned / measured - 1), plan.moment.c_str());
  EXPECT_NEAR(planned / measured, 1.0, within) << name;
}

constexpr const char* kSmall =
    "dim: 192, num_layers: 4, num_heads: 6, num_kv_heads: 2, ffn_dim: 512, vocab_size: 1000";

TEST(LiveMemory, Bfloat16) {
  expect_planned("bf16", read(kSmall, {"training.seq_len=256", "training.local_batch_size=4"}));
}

TEST(LiveMemory, Float32) {
  expect_planned("fp32", read(kSmall, {"training.seq_len=256", "training.local_batch_size=4",
                                       "training.mixed_precision_param=float32"}));
}

TEST(LiveMemory, ParametersOutweighActivations) {
  expect_planned("few tokens",
                 read(kSmall, {"training.seq_len=32", "training.local_batch_size=1"}));
  expect_planned("few tokens, fp32",
                 read(kSmall, {"training.seq_len=32", "training.local_batch_size=1",
                               "training.mixed_precision_param=float32"}));
}

TEST(LiveMemory, WideVocabulary) {
  const std::string wide =
      "dim: 64, num_layers: 2, num_heads: 2, num_kv_heads: 2, ffn_dim: 128, vocab_size: 16000";
  expect_planned("wide", read(wide, {"training.seq_len=128", "training.local_batch_size=4"}));
  expect_planned("wide, tied", read(wide + ", tie_word_embeddings: true",
                                    {"training.seq_len=128", "training.local_batch_size=4"}));
}

TEST(LiveMemory, NormedHeads) {
  expect_planned("qwen3", read(std::string(kSmall) + ", architecture: qwen3",
                               {"training.seq_len=256", "training.local_batch_size=4"}));
}

TEST(LiveMemory, StepInBackward) {
  const std::vector<std::string> early = {"optimizer.early_step_in_backward=true",
                                          "training.max_norm=0", "training.seq_len=32",
                                          "training.local_batch_size=1"};
  const auto with = [&](std::vector<std::string> overrides) {
    overrides.insert(overrides.end(), early.begin(), early.end());
    return read(kSmall, overrides);
  };
  expect_planned("early", with({}));
  expect_planned("early, fp32", with({"training.mixed_precision_param=float32"}));
  expect_planned("early, 4 passes", with({"training.global_batch_size=4"}));
  expect_planned("early, 2 ranks", with({}), 2);
}

TEST(LiveMemory, AccumulatedPasses) {
  expect_planned("4 passes", read(kSmall, {"training.seq_len=128", "training.local_batch_size=2",
                                           "training.global_batch_size=8"}));
}

TEST(LiveMemory, Recomputation) {
  const std::vector<std::string> size = {"training.seq_len=256", "training.local_batch_size=4"};
  const std::string deep =
      "dim: 192, num_layers: 10, num_heads: 6, num_kv_heads: 2, ffn_dim: 512, vocab_size: 300";
  const auto with = [&](std::vector<std::string> overrides) {
    overrides.insert(overrides.end(), size.begin(), size.end());
    return read(deep, overrides);
  };
  const std::string mode = "activation_checkpoint.mode=";
  const std::string option = "activation_checkpoint.selective_ac_option=";
  expect_planned("no recomputation", with({}));
  expect_planned("full", with({mode + "full"}));
  expect_planned("selective op", with({mode + "selective", option + "op"}));
  expect_planned("every second block", with({mode + "selective", option + "2"}));
}

TEST(LiveMemory, Float8) {
  for (const std::string recipe : {"tensorwise", "rowwise_with_gw_hp"}) {
    for (const std::string emulate : {"false", "true"}) {
      expect_planned((recipe + (emulate == "true" ? ", emulated" : "")).c_str(),
                     read(kSmall, {"training.seq_len=256", "training.local_batch_size=4",
                                   "float8.recipe_name=" + recipe, "float8.emulate=" + emulate}),
                     1, kWithinFloat8);
    }
  }
}

TEST(LiveMemory, TwoRanks) {
  const std::vector<std::string> size = {"training.seq_len=128", "training.local_batch_size=2"};
  expect_planned("2 shards", read(kSmall, size), 2);
}

}  // namespace
}  // namespace narrowgauge::trainer

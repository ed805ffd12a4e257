#include "trainer/config_check.h"

#include <gtest/gtest.h>

#include "trainer/config_reader.h"

namespace narrowgauge::trainer {
namespace {

constexpr const char* kMinimal =
    "job: {run_dir: x}\n"
    "tokenizer: {kind: bytes}\n"
    "data: {train: [a.txt]}\n"
    "model: {dim: 64, num_heads: 4, num_layers: 2, ffn_dim: 128}\n";

TrainConfig minimal(const std::vector<std::string>& overrides = {}) {
  return read_config_text(kMinimal, "c.yaml", overrides);
}

// The problem as check() words it, without the place.
std::string problem(TrainConfig config) {
  complete(config);
  try {
    check(config);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "none";
}

TEST(Complete, FillsInWhatFollows) {
  const TrainConfig config = minimal();
  EXPECT_EQ(config.model.num_kv_heads, 4);
  EXPECT_EQ(config.model.head_dim, 16);
  EXPECT_EQ(config.validation.local_batch_size, config.training.local_batch_size);
  EXPECT_FALSE(config.model.attention_bias || config.model.qk_norm);
  EXPECT_TRUE(minimal({"model.architecture=qwen2"}).model.attention_bias);
  EXPECT_TRUE(minimal({"model.architecture=qwen3"}).model.qk_norm);
}

TEST(Check, NamesKeysAndValues) {
  struct Case {
    std::function<void(TrainConfig&)> break_it;
    std::string problem;
  };
  const Case cases[] = {
      {[](TrainConfig&) {}, "none"},
      {[](TrainConfig& c) { c.tokenizer.kind = ""; },
       "tokenizer.kind: expected one of bytes, huggingface, gpt2, sentencepiece, none, got "
       "nothing"},
      {[](TrainConfig& c) { c.data.train.clear(); },
       "data.train: expected files, globs or directories, got nothing; write train: [PATH]"},
      {[](TrainConfig& c) { c.model.ffn_dim = 0; },
       "model.ffn_dim: expected a positive integer, got 0; set it, or start from "
       "model.initial_load_path"},
      {[](TrainConfig& c) { c.model.dim = 66, c.model.head_dim = 0; },
       "model.dim: expected a multiple of model.num_heads (4), got 66; or set model.head_dim"},
      {[](TrainConfig& c) { c.model.head_dim = 15; },
       "model.head_dim: expected an even number (rotary pairs), got 15 with model.dim 64 and "
       "model.num_heads 4"},
      {[](TrainConfig& c) { c.model.num_kv_heads = 3; },
       "model.num_kv_heads: expected a divisor of model.num_heads (4), got 3"},
      {[](TrainConfig& c) { c.model.rope_scaling = "llama3", c.model.rope_low_freq_factor = 4; },
       "model.rope_high_freq_factor: expected more than model.rope_low_freq_factor (4.0), got "
       "4.0"},
      {[](TrainConfig& c) { c.model.vocab_size = 255; },
       "model.vocab_size: expected at least the 256 ids of the tokenizer, got 255; 0 takes the "
       "tokenizer's number"},
      {[](TrainConfig& c) { c.tokenizer.path = "t.json"; },
       "tokenizer.path: expected none with tokenizer.kind bytes, got t.json"},
      {[](TrainConfig& c) { c.tokenizer.kind = "gpt2"; },
       "tokenizer.path: expected a path with tokenizer.kind gpt2, got nothing"},
      {[](TrainConfig& c) { c.tokenizer.kind = "huggingface"; },
       "tokenizer.path: expected a path with tokenizer.kind huggingface, got nothing; or set "
       "tokenizer.train_vocab_size"},
      {[](TrainConfig& c) {
         c.tokenizer = {"huggingface", "t.json", 500};
       },
       "tokenizer.train_vocab_size: expected tokenizer.kind huggingface and no tokenizer.path to "
       "train one, got kind huggingface and path t.json"},
      {[](TrainConfig& c) {
         c.tokenizer = {"huggingface", "", 100};
       },
       "tokenizer.train_vocab_size: expected more than the 256 single bytes, got 100"},
      {[](TrainConfig& c) {
         c.tokenizer = {"huggingface", "", 500}, c.model.vocab_size = 300;
       },
       "none"},  // as a run writes it whose text yielded 300 entries
      {[](TrainConfig& c) { c.data.train = {kRandomTokens}; },
       "tokenizer.kind: expected none with data.train [random_tokens], got bytes"},
      {[](TrainConfig& c) {
         c.data.train = {kRandomTokens, "a.txt"};
       },
       "data.train: expected [random_tokens] alone, got 2 sources"},
      {[](TrainConfig& c) { c.tokenizer.kind = "none"; },
       "model.vocab_size: expected a number with tokenizer.kind none, got 0; set it"},
      {[](TrainConfig& c) { c.data.validation = {"v"}, c.data.validation_fraction = 0.1; },
       "data.validation_fraction: expected either this or data.validation, got both"},
      {[](TrainConfig& c) { c.validation.interval = 5; },
       "validation.interval: expected held-out data, got none; set data.validation_fraction or "
       "data.validation"},
      {[](TrainConfig& c) {
         c.tokenizer.kind = "none", c.model.vocab_size = 9, c.generation.interval = 5;
       },
       "generation.interval: expected 0 with tokenizer.kind none, got 5; ids without a tokenizer "
       "are no text"},
      {[](TrainConfig& c) { c.training.seq_len = 4096; },
       "training.seq_len: expected at most model.max_seq_len (2048), got 4096; raise "
       "model.max_seq_len"},
      {[](TrainConfig& c) { c.training.global_batch_size = 12; },
       "training.global_batch_size: expected a multiple of training.local_batch_size (8), got 12"},
      {[](TrainConfig& c) { c.training.global_batch_size = 0; },
       "training.global_batch_size: expected -1 or a positive integer, got 0"},
      {[](TrainConfig& c) { c.parallelism.data_parallel_shard_degree = 0; },
       "parallelism.data_parallel_shard_degree: expected -1 or a positive integer, got 0"},
      {[](TrainConfig& c) { c.optimizer.early_step_in_backward = true; },
       "training.max_norm: expected 0 with optimizer.early_step_in_backward, since the norm of all "
       "gradients is known only after they have been applied, got 1.0"},
      {[](TrainConfig& c) { c.optimizer.early_step_in_backward = true, c.training.max_norm = 0; },
       "none"},
      {[](TrainConfig& c) {
         c.optimizer.early_step_in_backward = true, c.training.max_norm = 0;
         c.optimizer.name = "Muon";
       },
       "optimizer.early_step_in_backward: expected false with optimizer.name Muon, whose ranks "
       "compute each other's updates, got true"},
      {[](TrainConfig& c) {
         c.optimizer.early_step_in_backward = true, c.training.max_norm = 0;
         c.training.sigma_factor = 6;
       },
       "optimizer.early_step_in_backward: expected false with training.sigma_factor, which judges "
       "a step before it is applied, got true"},
  };
  for (const auto& [break_it, expected] : cases) {
    TrainConfig config = minimal();
    break_it(config);
    EXPECT_EQ(problem(config), expected);
  }
}

TEST(Check, JudgesALoadedShapeOnceItIsKnown) {
  TrainConfig config = read_config_text(
      "job: {run_dir: x}\ntokenizer: {kind: bytes}\ndata: {train: [a]}\n"
      "model: {initial_load_path: hf}\ntraining: {seq_len: 4096}\n",
      "c.yaml", {});
  EXPECT_EQ(problem(config), "none");
  config.model.dim = 64;
  config.model.num_layers = config.model.num_heads = 2;
  config.model.ffn_dim = 128;
  EXPECT_EQ(problem(config),
            "training.seq_len: expected at most model.max_seq_len (2048), got 4096; raise "
            "model.max_seq_len");
}

std::string plan_error(const std::vector<std::string>& overrides, int64_t world_size) {
  try {
    plan_ranks(minimal(overrides), world_size);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "none";
}

TEST(PlanRanks, DividesTheStep) {
  RankPlan plan = plan_ranks(minimal(), 1);
  EXPECT_EQ(plan.shard_degree, 1);
  EXPECT_EQ(plan.global_batch_size, 8);
  EXPECT_EQ(plan.accumulation_steps, 1);
  plan = plan_ranks(
      minimal({"parallelism.data_parallel_replicate_degree=2", "training.global_batch_size=128"}),
      8);
  EXPECT_EQ(plan.replicate_degree, 2);
  EXPECT_EQ(plan.shard_degree, 4);
  EXPECT_EQ(plan.world_size(), 8);
  EXPECT_EQ(plan.accumulation_steps, 2);
}

TEST(PlanRanks, RefusesWhatDoesNotFit) {
  EXPECT_EQ(plan_error({"training.global_batch_size=16"}, 4),
            "training.global_batch_size: expected a multiple of training.local_batch_size (8) x 4 "
            "ranks = 32, got 16; set training.local_batch_size=4");
  EXPECT_EQ(plan_error({"training.global_batch_size=16", "training.local_batch_size=4"}, 4),
            "none");
  EXPECT_EQ(plan_error({"training.global_batch_size=16"}, 3),
            "training.global_batch_size: expected a multiple of training.local_batch_size (8) x 3 "
            "ranks = 24, got 16; set training.global_batch_size=24");
  EXPECT_EQ(plan_error({"parallelism.data_parallel_replicate_degree=3"}, 4),
            "parallelism: expected data_parallel_replicate_degree (3) x "
            "data_parallel_shard_degree (-1) to make the 4 ranks that were started, got 3; start "
            "that many or change the degrees");
  EXPECT_EQ(plan_error({"parallelism.data_parallel_shard_degree=2"}, 1),
            "parallelism: expected data_parallel_replicate_degree (1) x "
            "data_parallel_shard_degree (2) to make the 1 ranks that were started, got 2; start "
            "that many or change the degrees");
  EXPECT_EQ(plan_error({"parallelism.fsdp_reshard_after_forward=2"}, 4), "none");
  EXPECT_EQ(plan_error({"parallelism.fsdp_reshard_after_forward=3"}, 4),
            "parallelism.fsdp_reshard_after_forward: expected a divisor of the 4 ranks that share "
            "one copy, got 3");
  EXPECT_EQ(plan_error({}, 0), "world size: expected 1 to 1048576 ranks, got 0");
}

}  // namespace
}  // namespace narrowgauge::trainer

#include "trainer/config_schema.h"

#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <sstream>

#include "trainer/config_docs.h"
#include "trainer/config_reader.h"
#include "trainer/config_writer.h"
#include "trainer/nearest_name.h"

namespace narrowgauge::trainer {
namespace {

// The keys are an interface: whoever adds one, adds it here and thinks twice.
constexpr const char* kFrozenKeys = R"(job.run_dir
model.architecture
model.vocab_size
model.dim
model.num_layers
model.num_heads
model.num_kv_heads
model.head_dim
model.ffn_dim
model.max_seq_len
model.norm_eps
model.initializer_range
model.tie_word_embeddings
model.rope_theta
model.rope_scaling
model.rope_factor
model.rope_low_freq_factor
model.rope_high_freq_factor
model.rope_original_max_seq_len
model.initial_load_path
tokenizer.kind
tokenizer.path
tokenizer.train_vocab_size
data.train
data.validation
data.validation_fraction
data.weights
data.packing
data.text_field
data.chat_template
data.train_on_input
data.invalid_utf8
data.cache_dir
training.steps
training.seq_len
training.local_batch_size
training.global_batch_size
training.max_norm
training.seed
training.dtype
training.mixed_precision_param
training.mixed_precision_reduce
training.device
training.num_threads
training.enable_cpu_offload
training.max_skipped_steps
training.sigma_factor
training.rolling_interval_length
training.check_weight_hash_interval
optimizer.name
optimizer.lr
optimizer.beta1
optimizer.beta2
optimizer.eps
optimizer.weight_decay
optimizer.decay_norms_and_embeddings
optimizer.parameter_groups
optimizer.state_dtype
optimizer.bf16_stochastic_round
optimizer.cpu_offload
optimizer.early_step_in_backward
optimizer.momentum
lr_scheduler.warmup_steps
lr_scheduler.decay_ratio
lr_scheduler.decay_type
lr_scheduler.min_lr_factor
float8.recipe_name
float8.filter_fqns
float8.enable_fsdp_float8_all_gather
float8.pad_inner_dim
float8.casts
float8.use_fast_accum
float8.amax_history_len
float8.amax_compute_algo
float8.emulate
float8.health_interval
sparsity.kind
sparsity.algorithm
sparsity.gradient
sparsity.sr_ste_decay
sparsity.start_step
sparsity.end_step
sparsity.mask_interval
sparsity.filter_fqns
qat.scheme
qat.group_size
qat.bits
qat.overrides
qat.fake_quant_after_n_steps
qat.learned_ranges
distillation.weight
distillation.temperature
lora.rank
lora.alpha
lora.dropout
lora.targets
lora.modules_to_save
parallelism.data_parallel_replicate_degree
parallelism.data_parallel_shard_degree
parallelism.fsdp_reshard_after_forward
activation_checkpoint.mode
activation_checkpoint.selective_ac_option
comm.init_timeout_seconds
comm.train_timeout_seconds
comm.trace_buf_size
checkpoint.enable
checkpoint.interval
checkpoint.keep_latest_k
checkpoint.load_step
checkpoint.async_mode
checkpoint.allow_changes
validation.interval
validation.max_batches
validation.local_batch_size
generation.interval
generation.prompt
generation.max_new_tokens
generation.temperature
generation.top_p
export.enable
export.dtype
metrics.log_interval
profiling.enable_profiling
profiling.save_traces_folder
profiling.profile_freq
profiling.profiler_active
profiling.profiler_warmup
)";

TEST(ConfigSchema, KeysAreFrozen) {
  std::string keys;
  for (const ConfigKey& key : config_schema()) {
    keys += key.path() + "\n";
  }
  EXPECT_EQ(keys, kFrozenKeys);
}

TEST(ConfigSchema, EveryKeyHasItsOwnFieldSectionAndLine) {
  std::set<std::string> sections, used;
  for (const ConfigSection& section : config_sections()) {
    EXPECT_TRUE(sections.emplace(section.name).second) << section.name;
  }
  TrainConfig config;
  std::set<const void*> fields;
  for (const ConfigKey& key : config_schema()) {
    const void* field = std::visit(
        [&](const auto& value) { return static_cast<const void*>(&value.field(config)); },
        key.value);
    EXPECT_TRUE(fields.insert(field).second) << key.path() << " shares another key's field";
    EXPECT_TRUE(used.insert(key.path()).second) << key.path() << " stands twice";
    EXPECT_TRUE(sections.contains(std::string(key.section))) << key.path();
    EXPECT_FALSE(key.doc.empty()) << key.path();
    EXPECT_EQ(key.doc.find_first_of("|\n"), std::string_view::npos) << key.path();
  }
}

// A default that the reader would refuse could not be read back from <run>/config.yaml.
TEST(ConfigSchema, DefaultsAreValidValues) {
  const std::set<std::string> required = {"model.dim", "model.num_layers", "model.num_heads",
                                          "model.ffn_dim", "tokenizer.kind"};
  for (const ConfigKey& key : config_schema()) {
    if (required.contains(key.path())) {
      continue;
    }
    const std::string line = std::string(key.section) + ": {" + std::string(key.name) + ": " +
                             format_value(key, TrainConfig{}) + "}";
    try {
      read_config_text(line, "c.yaml", {});
    } catch (const ConfigError& error) {
      // Only the missing rest may be wrong.
      const std::string what = error.what();
      EXPECT_NE(what.find("job.run_dir: expected a directory"), std::string::npos) << what;
    }
  }
}

TEST(ConfigDocs, PageIsUpToDate) {
  std::ifstream file("docs/CONFIG.md");
  ASSERT_TRUE(file) << "docs/CONFIG.md is not among the test's data";
  std::stringstream page;
  page << file.rdbuf();
  EXPECT_TRUE(page.str() == config_docs())  // without printing both pages
      << "it is not; run: ./narrowgauge help config > docs/CONFIG.md";
}

TEST(Configs, ShippedConfigurationsAreValid) {
  for (const char* name : {"quickstart", "shakespeare_char", "bench/llama_12m",
                           "convergence/llama_3m", "convergence/llama_125m", "convergence/qat"}) {
    const std::string path = std::string("configs/") + name + ".yaml";
    const TrainConfig config = read_config(path, {});
    EXPECT_EQ(to_yaml(read_config_text(to_yaml(config), name, {})), to_yaml(config)) << path;
  }
}

TEST(Configs, BenchmarkIsTheModelThatPeersMeasure) {
  const TrainConfig config = read_config("configs/bench/llama_12m.yaml", {});
  const ModelConfig& model = config.model;
  EXPECT_EQ(model.vocab_size, 4096);
  EXPECT_EQ(model.dim, 384);
  EXPECT_EQ(model.num_layers, 6);
  EXPECT_EQ(model.num_heads, 6);
  EXPECT_EQ(model.num_kv_heads, 2);
  EXPECT_EQ(model.ffn_dim, 1024);
  EXPECT_EQ(config.training.seq_len, 256);
  EXPECT_EQ(config.training.local_batch_size, 8);
  EXPECT_EQ(config.data.train, std::vector<std::string>{kRandomTokens});
}

TEST(NearestName, CountsEditsAndSwaps) {
  EXPECT_EQ(edit_distance("", "abc"), 3u);
  EXPECT_EQ(edit_distance("abc", "abc"), 0u);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
  EXPECT_EQ(edit_distance("dmi", "dim"), 1u);
  EXPECT_EQ(edit_distance("ca", "abc"), 3u);  // optimal string alignment, not full Damerau
}

TEST(NearestName, StaysSilentWhenNothingIsNear) {
  const std::vector<std::string_view> names = {"train", "validate", "eval"};
  EXPECT_EQ(nearest_name("trian", names), "train");
  EXPECT_EQ(nearest_name("val", names), "validate");
  EXPECT_EQ(nearest_name("serve", names), std::nullopt);
  EXPECT_EQ(nearest_name("", names), std::nullopt);
  EXPECT_EQ(nearest_name(std::string(100000, 'x'), names), std::nullopt);
}

}  // namespace
}  // namespace narrowgauge::trainer

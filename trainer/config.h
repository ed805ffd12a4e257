#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "nn/transformer_config.h"

namespace narrowgauge::trainer {

// Vocabulary: a *section* is a top-level name of the YAML file, a *key* is section.name. The
// structs below hold the values and the defaults; what each key means, its unit and its range stand
// once, in config_schema.cc, from which come the reader, <run>/config.yaml, `help config` and
// docs/CONFIG.md.

// A wrong configuration. what() begins with the place: "file:line:column: " or "override '...': ".
// Programs end with exit code 2.
struct ConfigError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

struct JobConfig {
  std::string run_dir;
};

// The shape is read from initial_load_path/config.json where that is set. The biases and the q/k
// norm follow from the architecture: see complete() in config_check.h.
struct ModelConfig : nn::TransformerConfig {
  std::string initial_load_path;
};

struct TokenizerConfig {
  std::string kind;
  std::string path;
  int64_t train_vocab_size = 0;
};

struct DataConfig {
  std::vector<std::string> train;
  std::vector<std::string> validation;
  double validation_fraction = 0.0;
  std::vector<std::string> weights;  // numbers
  std::string packing = "stream";
  std::string text_field = "text";
  std::string chat_template;
  bool train_on_input = false;
  std::string invalid_utf8 = "error";
  std::string cache_dir;
};

struct TrainingConfig {
  int64_t steps = 10000;
  int64_t seq_len = 2048;
  int64_t local_batch_size = 8;
  int64_t global_batch_size = -1;
  double max_norm = 1.0;
  int64_t seed = 42;
  std::string dtype = "float32";
  std::string mixed_precision_param = "bfloat16";
  std::string mixed_precision_reduce = "float32";
  std::string device = "auto";
  int64_t num_threads = 0;
  bool enable_cpu_offload = false;
  int64_t max_skipped_steps = 5;
  double sigma_factor = 0.0;
  int64_t rolling_interval_length = 128;
  int64_t check_weight_hash_interval = 1000;
};

struct OptimizerConfig {
  std::string name = "AdamW";
  double lr = 8e-4;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
  bool decay_norms_and_embeddings = false;
  std::vector<std::string> parameter_groups;
  std::string state_dtype = "float32";
  bool bf16_stochastic_round = false;
  bool cpu_offload = false;
  bool early_step_in_backward = false;
  double momentum = 0.95;
};

struct LrSchedulerConfig {
  int64_t warmup_steps = 0;
  double decay_ratio = 1.0;
  std::string decay_type = "linear";
  double min_lr_factor = 0.0;
};

struct ParallelismConfig {
  int64_t data_parallel_replicate_degree = 1;
  int64_t data_parallel_shard_degree = -1;
  std::string fsdp_reshard_after_forward = "default";  // or a number of ranks
};

struct ActivationCheckpointConfig {
  std::string mode = "none";
  std::string selective_ac_option = "2";  // "op", or n for every n-th block
};

// Casts of linears to 8-bit floating point while training.
struct Float8Config {
  std::string recipe_name = "none";
  std::vector<std::string> filter_fqns = {"lm_head"};
  bool enable_fsdp_float8_all_gather = false;
  bool pad_inner_dim = false;
  std::vector<std::string> casts;
  std::vector<std::string> use_fast_accum = {"output"};
  int64_t amax_history_len = 16;
  std::string amax_compute_algo = "max";
  bool emulate = false;
  int64_t health_interval = 100;
};

// 2:4 sparse linears while training, or a pruned model whose zeros stay.
struct SparsityConfig {
  std::string kind = "none";
  std::string algorithm = "optimal";
  std::string gradient = "straight_through";
  double sr_ste_decay = 0;
  int64_t start_step = 1;
  int64_t end_step = 0;  // 0: the last
  int64_t mask_interval = 1;
  std::vector<std::string> filter_fqns = {"lm_head"};
};

// Fake quantization while training: see qat/prepare.h.
struct QATConfig {
  std::string scheme = "none";
  int64_t group_size = 0;  // 0: the scheme's own; -1: a whole row
  int64_t bits = 0;        // 0: the scheme's own
  std::vector<std::string> overrides;
  int64_t fake_quant_after_n_steps = 0;
  bool learned_ranges = false;
};

// A loss that compares with the unquantized model: see trainer/distillation.h.
struct DistillationConfig {
  double weight = 0.0;  // 0: none
  double temperature = 1.0;
};

// Low-rank adapters beside frozen weights.
struct LoRAConfig {
  int64_t rank = 0;  // 0: none
  double alpha = 16.0;
  double dropout = 0.0;
  std::vector<std::string> targets = {"*_proj"};
  std::vector<std::string> modules_to_save;
};

struct CommConfig {
  int64_t init_timeout_seconds = 1800;
  int64_t train_timeout_seconds = 300;
  int64_t trace_buf_size = 1000;
};

struct CheckpointConfig {
  bool enable = true;
  int64_t interval = 500;
  int64_t keep_latest_k = 3;
  int64_t load_step = -1;
  std::string async_mode = "async";
  std::vector<std::string> allow_changes;
};

struct ValidationConfig {
  int64_t interval = 0;
  int64_t max_batches = 0;
  int64_t local_batch_size = 0;
};

struct GenerationConfig {
  int64_t interval = 0;
  std::string prompt = "\n";
  int64_t max_new_tokens = 100;
  double temperature = 0.8;
  double top_p = 0.95;
};

struct ExportConfig {
  bool enable = true;
  std::string dtype = "float32";
};

struct MetricsConfig {
  int64_t log_interval = 10;
};

struct ProfilingConfig {
  bool enable_profiling = false;
  std::string save_traces_folder = "profile_traces";
  int64_t profile_freq = 10;
  int64_t profiler_active = 1;
  int64_t profiler_warmup = 3;
};

// One run. Obtained from read_config(), which returns only configurations that pass every check.
struct TrainConfig {
  JobConfig job;
  ModelConfig model;
  TokenizerConfig tokenizer;
  DataConfig data;
  TrainingConfig training;
  OptimizerConfig optimizer;
  LrSchedulerConfig lr_scheduler;
  ParallelismConfig parallelism;
  Float8Config float8;
  SparsityConfig sparsity;
  QATConfig qat;
  DistillationConfig distillation;
  LoRAConfig lora;
  ActivationCheckpointConfig activation_checkpoint;
  CommConfig comm;
  CheckpointConfig checkpoint;
  ValidationConfig validation;
  GenerationConfig generation;
  ExportConfig export_;  // section `export`, a C++ keyword
  MetricsConfig metrics;
  ProfilingConfig profiling;
};

// float8.recipe_name of a run without fp8, qat.scheme of one without a default scheme.
inline constexpr const char* kNoFloat8 = "none";
inline constexpr const char* kNoScheme = "none";
// sparsity.kind of a dense run, and of one that holds the zeros it begins with.
inline constexpr const char* kNoSparsity = "none";
inline constexpr const char* kPrunedWeights = "pruned";

// The one source in data.train that is no file: uniformly random token ids, for benchmarks.
inline constexpr const char* kRandomTokens = "random_tokens";

}  // namespace narrowgauge::trainer

#include "trainer/planned_run.h"

#include <algorithm>
#include <thread>

#include "data/tokenizer.h"
#include "trainer/config_value.h"
#include "trainer/model_shape.h"
#include "trainer/run_directory.h"

namespace narrowgauge::trainer {
namespace {

int64_t element_bytes(const std::string& dtype) { return dtype == "float32" ? 4 : 2; }

int64_t vocabulary_size(const TrainConfig& config) {
  const TokenizerConfig& tokenizer = config.tokenizer;
  if (tokenizer.path.empty() && tokenizer.train_vocab_size > 0) {
    return tokenizer.train_vocab_size;
  }
  const auto loaded = data::load_tokenizer({tokenizer.kind, tokenizer.path});
  return loaded ? loaded->vocab_size() : 0;
}

// fsdp_reshard_after_forward: default, always, never or a number of ranks, where 1 keeps
// everything.
void describe_resharding(const TrainConfig& config, plan::TrainingSpec& spec) {
  const std::string& reshard = config.parallelism.fsdp_reshard_after_forward;
  const int64_t ranks = parse_integer(reshard).value.value_or(0);
  spec.reshard_after_forward = reshard != "never" && ranks != 1;
  spec.reshard_ranks = ranks < spec.shard_degree ? ranks : 0;
}

// A number as selective_ac_option recomputes every n-th block as a whole.
void describe_recomputation(const TrainConfig& config, plan::TrainingSpec& spec) {
  const ActivationCheckpointConfig& checkpoint = config.activation_checkpoint;
  const int64_t every_nth = parse_integer(checkpoint.selective_ac_option).value.value_or(0);
  if (checkpoint.mode == "full") {
    spec.recompute = plan::Recompute::kFull;
  } else if (checkpoint.mode == "selective" && every_nth > 0) {
    spec.recompute = plan::Recompute::kFull;
    spec.recompute_every_nth = every_nth;
  } else if (checkpoint.mode == "selective") {
    spec.recompute = plan::Recompute::kSelective;
  }
}

}  // namespace

plan::TrainingSpec training_spec(const TrainConfig& config, const RankPlan& ranks) {
  plan::TrainingSpec spec;
  spec.model = config.model;
  spec.seq_len = config.training.seq_len;
  spec.local_batch_size = config.training.local_batch_size;
  spec.accumulation_steps = ranks.accumulation_steps;
  spec.replicate_degree = ranks.replicate_degree;
  spec.shard_degree = ranks.shard_degree;
  spec.param_bytes = element_bytes(config.training.mixed_precision_param);
  spec.reduce_bytes = element_bytes(config.training.mixed_precision_reduce);
  spec.cpu_offload = config.training.enable_cpu_offload;
  spec.optimizer = config.optimizer.name;
  spec.early_step_in_backward = config.optimizer.early_step_in_backward;
  spec.float8_recipe = config.float8.recipe_name;
  spec.float8_all_gather = config.float8.enable_fsdp_float8_all_gather;
  describe_resharding(config, spec);
  describe_recomputation(config, spec);
  return spec;
}

void complete_model(TrainConfig& config) {
  fill_model_shape(config.model, RunDirectory::attach(config));
  if (config.model.vocab_size == 0) {
    config.model.vocab_size = vocabulary_size(config);
  }
  complete(config);
  check(config);
}

plan::Hardware run_hardware(const TrainConfig& config, int64_t num_ranks) {
  const std::string gpu = config.training.device == "cpu" ? "" : plan::installed_gpu();
  if (!gpu.empty()) {
    const auto known = plan::find_hardware(gpu);
    plan::Hardware unknown;
    unknown.name = gpu;
    return known.value_or(unknown);
  }
  const auto cores = static_cast<int64_t>(std::thread::hardware_concurrency());
  const int64_t share = std::max<int64_t>(1, cores / num_ranks);
  return plan::cpu_hardware(config.training.num_threads > 0 ? config.training.num_threads : share);
}

}  // namespace narrowgauge::trainer

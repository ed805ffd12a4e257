#include "trainer/config_check.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "optim/group_rule.h"
#include "trainer/config_value.h"

namespace narrowgauge::trainer {
namespace {

using Problem = std::optional<ConfigProblem>;

std::string text(int64_t value) { return std::to_string(value); }

Problem find_missing(const TrainConfig& config) {
  if (config.job.run_dir.empty()) {
    return {{"job.run_dir", "expected a directory, got nothing; write run_dir: runs/NAME"}};
  }
  if (config.tokenizer.kind.empty()) {
    return {{"tokenizer.kind",
             "expected one of bytes, huggingface, gpt2, sentencepiece, none, got nothing"}};
  }
  if (config.data.train.empty()) {
    return {
        {"data.train", "expected files, globs or directories, got nothing; write train: [PATH]"}};
  }
  return std::nullopt;
}

Problem find_shape_problem(const ModelConfig& model) {
  const std::pair<const char*, int64_t> required[] = {{"dim", model.dim},
                                                      {"num_layers", model.num_layers},
                                                      {"num_heads", model.num_heads},
                                                      {"ffn_dim", model.ffn_dim}};
  for (const auto& [name, value] : required) {
    if (value < 1) {
      return {
          {std::string("model.") + name, "expected a positive integer, got " + text(value) +
                                             "; set it, or start from model.initial_load_path"}};
    }
  }
  if (model.head_dim == 0 && model.dim % model.num_heads != 0) {
    return {{"model.dim", "expected a multiple of model.num_heads (" + text(model.num_heads) +
                              "), got " + text(model.dim) + "; or set model.head_dim"}};
  }
  if (model.head_dim < 1 || model.head_dim % 2 != 0) {
    return {{"model.head_dim", "expected an even number (rotary pairs), got " +
                                   text(model.head_dim) + " with model.dim " + text(model.dim) +
                                   " and model.num_heads " + text(model.num_heads)}};
  }
  if (model.num_kv_heads < 1 || model.num_heads % model.num_kv_heads != 0) {
    return {{"model.num_kv_heads", "expected a divisor of model.num_heads (" +
                                       text(model.num_heads) + "), got " +
                                       text(model.num_kv_heads)}};
  }
  if (model.rope_scaling == "llama3" && model.rope_low_freq_factor >= model.rope_high_freq_factor) {
    return {{"model.rope_high_freq_factor", "expected more than model.rope_low_freq_factor (" +
                                                format_number(model.rope_low_freq_factor) +
                                                "), got " +
                                                format_number(model.rope_high_freq_factor)}};
  }
  return std::nullopt;
}

Problem find_tokenizer_problem(const TrainConfig& config) {
  const TokenizerConfig& tokenizer = config.tokenizer;
  const int64_t vocab_size = config.model.vocab_size;
  const bool takes_path = tokenizer.kind != "bytes" && tokenizer.kind != "none";
  const bool trains = tokenizer.train_vocab_size > 0;
  if (!takes_path && !tokenizer.path.empty()) {
    return {{"tokenizer.path",
             "expected none with tokenizer.kind " + tokenizer.kind + ", got " + tokenizer.path}};
  }
  if (trains && (tokenizer.kind != "huggingface" || !tokenizer.path.empty())) {
    return {{"tokenizer.train_vocab_size",
             "expected tokenizer.kind huggingface and no tokenizer.path to train one, got kind " +
                 tokenizer.kind + (tokenizer.path.empty() ? "" : " and path " + tokenizer.path)}};
  }
  if (takes_path && tokenizer.path.empty() && !trains) {
    return {{"tokenizer.path",
             "expected a path with tokenizer.kind " + tokenizer.kind + ", got nothing" +
                 (tokenizer.kind == "huggingface" ? "; or set tokenizer.train_vocab_size" : "")}};
  }
  constexpr int64_t kNumBytes = 256;
  // train_vocab_size does not count: short text yields fewer ids, so only the trained tokenizer can
  // be compared (data::check_vocab_size).
  if (tokenizer.kind == "bytes" && vocab_size > 0 && vocab_size < kNumBytes) {
    return {{"model.vocab_size", "expected at least the " + text(kNumBytes) +
                                     " ids of the tokenizer, got " + text(vocab_size) +
                                     "; 0 takes the tokenizer's number"}};
  }
  if (trains && tokenizer.train_vocab_size <= kNumBytes) {
    return {{"tokenizer.train_vocab_size",
             "expected more than the 256 single bytes, got " + text(tokenizer.train_vocab_size)}};
  }
  return std::nullopt;
}

Problem find_chat_problem(const TrainConfig& config) {
  const DataConfig& data = config.data;
  if (data.chat_template.empty()) {
    if (!data.train_on_input) {
      return std::nullopt;
    }
    return {{"data.train_on_input", "expected false without data.chat_template, got true"}};
  }
  if (config.tokenizer.kind == "none") {
    return {{"data.chat_template",
             "expected none with tokenizer.kind none, got " + in_quotes(data.chat_template)}};
  }
  if (config.tokenizer.train_vocab_size > 0) {
    return {{"tokenizer.train_vocab_size",
             "expected 0 with data.chat_template, got " + text(config.tokenizer.train_vocab_size) +
                 "; train one on text with `narrowgauge tokenizer train`"}};
  }
  return std::nullopt;
}

Problem find_weights_problem(const DataConfig& data) {
  if (data.weights.empty()) {
    return std::nullopt;
  }
  if (data.weights.size() != data.train.size()) {
    return {{"data.weights", "expected one for each of the " + text(data.train.size()) +
                                 " entries of data.train, got " + text(data.weights.size())}};
  }
  for (const std::string& weight : data.weights) {
    const Parsed<double> number = parse_number(weight);
    if (!number.value || *number.value <= 0) {
      return {
          {"data.weights", "expected numbers above 0, got " + in_quotes(weight) + number.remedy}};
    }
  }
  return std::nullopt;
}

Problem find_data_problem(const TrainConfig& config) {
  const DataConfig& data = config.data;
  const bool has_split = !data.validation.empty() || data.validation_fraction > 0;
  const auto is_random = [](const std::string& source) { return source == kRandomTokens; };
  const bool random = std::any_of(data.train.begin(), data.train.end(), is_random);
  if (random && data.train.size() > 1) {
    return {{"data.train",
             "expected [random_tokens] alone, got " + text(data.train.size()) + " sources"}};
  }
  if (random && config.tokenizer.kind != "none") {
    return {{"tokenizer.kind",
             "expected none with data.train [random_tokens], got " + config.tokenizer.kind}};
  }
  if (config.tokenizer.kind == "none" && config.model.vocab_size < 1 &&
      config.model.initial_load_path.empty()) {
    return {{"model.vocab_size", "expected a number with tokenizer.kind none, got 0; set it"}};
  }
  if (const Problem problem = find_chat_problem(config)) {
    return problem;
  }
  if (const Problem problem = find_weights_problem(data)) {
    return problem;
  }
  if (!data.validation.empty() && data.validation_fraction > 0) {
    return {{"data.validation_fraction", "expected either this or data.validation, got both"}};
  }
  if (config.validation.interval > 0 && !has_split) {
    return {{"validation.interval",
             "expected held-out data, got none; set data.validation_fraction or data.validation"}};
  }
  if (config.generation.interval > 0 && config.tokenizer.kind == "none") {
    return {{"generation.interval", "expected 0 with tokenizer.kind none, got " +
                                        text(config.generation.interval) +
                                        "; ids without a tokenizer are no text"}};
  }
  return std::nullopt;
}

Problem find_training_problem(const TrainConfig& config) {
  const TrainingConfig& training = config.training;
  const bool shape_known = config.model.initial_load_path.empty() || config.model.dim > 0;
  if (shape_known && training.seq_len > config.model.max_seq_len) {
    return {{"training.seq_len", "expected at most model.max_seq_len (" +
                                     text(config.model.max_seq_len) + "), got " +
                                     text(training.seq_len) + "; raise model.max_seq_len"}};
  }
  if (training.global_batch_size == 0) {
    return {{"training.global_batch_size", "expected -1 or a positive integer, got 0"}};
  }
  if (training.global_batch_size > 0 &&
      training.global_batch_size % training.local_batch_size != 0) {
    return {{"training.global_batch_size", "expected a multiple of training.local_batch_size (" +
                                               text(training.local_batch_size) + "), got " +
                                               text(training.global_batch_size)}};
  }
  if (config.parallelism.data_parallel_shard_degree == 0) {
    return {{"parallelism.data_parallel_shard_degree", "expected -1 or a positive integer, got 0"}};
  }
  return std::nullopt;
}

// What cannot be had once gradients are gone before the last of them is known.
Problem find_early_step_problem(const TrainConfig& config) {
  const auto problem = [](const std::string& what) -> Problem {
    return {{"optimizer.early_step_in_backward", "expected false with " + what + ", got true"}};
  };
  if (config.training.max_norm > 0) {
    return {{"training.max_norm",
             "expected 0 with optimizer.early_step_in_backward, since the norm of all gradients is "
             "known only after they have been applied, got " +
                 format_number(config.training.max_norm)}};
  }
  if (config.training.sigma_factor > 0) {
    return problem("training.sigma_factor, which judges a step before it is applied");
  }
  if (config.optimizer.name == "Muon") {
    return problem("optimizer.name Muon, whose ranks compute each other's updates");
  }
  if (config.optimizer.cpu_offload) {
    return problem("optimizer.cpu_offload, which reads all gradients after backward");
  }
  return std::nullopt;
}

Problem find_optimizer_problem(const TrainConfig& config) {
  const OptimizerConfig& optimizer = config.optimizer;
  const bool is_bf16 = config.training.dtype == "bfloat16";
  for (const std::string& rule : optimizer.parameter_groups) {
    try {
      optim::parse_group_rule(rule);
    } catch (const std::invalid_argument& error) {
      return {{"optimizer.parameter_groups", error.what()}};
    }
  }
  if (optimizer.state_dtype != "float32" && optimizer.name != "AdamW" && optimizer.name != "Adam") {
    return {{"optimizer.state_dtype", "expected float32 with optimizer.name " + optimizer.name +
                                          ", got " + optimizer.state_dtype}};
  }
  if (optimizer.bf16_stochastic_round && !is_bf16) {
    return {{"optimizer.bf16_stochastic_round",
             "expected training.dtype bfloat16 with it, got " + config.training.dtype}};
  }
  if (optimizer.name == "Muon" && is_bf16) {
    return {{"training.dtype", "expected float32 with optimizer.name Muon, got bfloat16"}};
  }
  if (optimizer.name == "Muon" && optimizer.cpu_offload) {
    return {{"optimizer.cpu_offload", "expected false with optimizer.name Muon, got true"}};
  }
  return optimizer.early_step_in_backward ? find_early_step_problem(config) : std::nullopt;
}

Problem find_profiling_problem(const TrainConfig& config) {
  const ProfilingConfig& profiling = config.profiling;
  if (profiling.enable_profiling &&
      profiling.profiler_warmup + profiling.profiler_active > profiling.profile_freq) {
    return {{"profiling.profile_freq",
             "expected at least profiling.profiler_warmup + profiling.profiler_active = " +
                 text(profiling.profiler_warmup + profiling.profiler_active) + ", got " +
                 text(profiling.profile_freq)}};
  }
  return std::nullopt;
}

// Weights that travel in another form can not be kept by some neighbours only.
Problem find_reshard_problem(const TrainConfig& config, bool converted, const std::string& by) {
  const std::string& reshard = config.parallelism.fsdp_reshard_after_forward;
  if (converted && reshard != "default" && reshard != "always" && reshard != "never") {
    return {{"parallelism.fsdp_reshard_after_forward",
             "expected default, always or never with " + by + ", got " + reshard}};
  }
  return std::nullopt;
}

// What can be told without the library; float8_linear_config judges the rest.
Problem find_float8_problem(const TrainConfig& config) {
  const std::string& recipe = config.float8.recipe_name;
  const bool in_blocks = recipe == "blockwise" || recipe == "mxfp8";
  if (config.float8.enable_fsdp_float8_all_gather && in_blocks) {
    return {{"float8.enable_fsdp_float8_all_gather",
             "expected false with float8.recipe_name " + recipe +
                 ", whose blocks do not end where shards end, got true"}};
  }
  return find_reshard_problem(config, recipe != kNoFloat8, "float8.recipe_name " + recipe);
}

// What can be told without the library; prepare_qat judges the rest.
Problem find_qat_problem(const TrainConfig& config) {
  const bool qat = config.qat.scheme != kNoScheme || !config.qat.overrides.empty();
  if (qat && config.float8.recipe_name != kNoFloat8) {
    return {{"float8.recipe_name",
             "expected none with qat: a linear trains in fp8 or for quantization, got " +
                 config.float8.recipe_name}};
  }
  if (config.lora.rank > 0 && config.float8.recipe_name != kNoFloat8) {
    return {{"float8.recipe_name",
             "expected none with lora.rank > 0, got " + config.float8.recipe_name}};
  }
  if (config.lora.rank == 0 && config.lora.dropout > 0) {
    return {{"lora.dropout", "expected 0.0 without lora.rank, whose adapters it is for, got " +
                                 format_number(config.lora.dropout)}};
  }
  if (config.lora.rank == 0 && !config.lora.modules_to_save.empty()) {
    return {{"lora.modules_to_save",
             "expected none without lora.rank, which trains all layers in full, got " +
                 config.lora.modules_to_save.front()}};
  }
  if (config.lora.rank > 0 && config.lora.targets.empty()) {
    return {{"lora.targets", "expected at least one linear with lora.rank > 0"}};
  }
  if (config.qat.learned_ranges && config.qat.scheme == kNoScheme) {
    return {{"qat.learned_ranges", "expected false without qat.scheme, got true"}};
  }
  if (config.qat.learned_ranges && config.lora.rank > 0) {
    return {
        {"qat.learned_ranges",
         "expected false with lora.rank > 0, whose merged weight is quantized by its own range, "
         "got true"}};
  }
  return find_reshard_problem(config, qat, "qat");
}

// A pruned model trains as any other does, in fp8 too: its zeros are held outside of the layers. An
// adapter would fill them when it is merged, a grid with a fractional zero point has no zero.
Problem find_pruned_weights_problem(const TrainConfig& config) {
  const SparsityConfig& sparsity = config.sparsity;
  if (config.model.initial_load_path.empty()) {
    return {{"model.initial_load_path",
             "expected a pruned model with sparsity.kind pruned, got none; `narrowgauge prune` "
             "makes one"}};
  }
  if (sparsity.start_step != 1 || sparsity.end_step != 0 || sparsity.sr_ste_decay != 0) {
    return {{"sparsity.kind",
             "expected semi_structured with sparsity.start_step, end_step or sr_ste_decay, got "
             "pruned, whose zeros are held from the first step to the last"}};
  }
  if (config.optimizer.early_step_in_backward) {
    return {{"optimizer.early_step_in_backward",
             "expected false with sparsity.kind pruned, which takes gradients away before the "
             "optimizer sees them, got true"}};
  }
  return std::nullopt;
}

Problem find_distillation_problem(const TrainConfig& config) {
  if (config.distillation.weight > 0 && config.model.initial_load_path.empty()) {
    return {
        {"distillation.weight", "expected 0 without model.initial_load_path, the teacher, got " +
                                    format_number(config.distillation.weight)}};
  }
  return std::nullopt;
}

// Which of the conversions go together on one linear is a matter of what their layers compute: a
// masked weight is cast to fp8 as any other, a masked input is not, and neither is fake-quantized.
Problem find_sparsity_problem(const TrainConfig& config) {
  const SparsityConfig& sparsity = config.sparsity;
  if (sparsity.kind == kNoSparsity) {
    return std::nullopt;
  }
  const bool is_pruned = sparsity.kind == kPrunedWeights;
  const bool has_float8 = config.float8.recipe_name != kNoFloat8;
  if (has_float8 && sparsity.kind == "semi_structured_activation") {
    return {{"sparsity.kind", "expected none, semi_structured or pruned with float8.recipe_name " +
                                  config.float8.recipe_name + ", got " + sparsity.kind}};
  }
  if (has_float8 && !is_pruned && config.float8.enable_fsdp_float8_all_gather) {
    return {{"float8.enable_fsdp_float8_all_gather",
             "expected false with sparsity.kind " + sparsity.kind +
                 ", whose masks are chosen between gather and cast, got true"}};
  }
  if (config.qat.scheme != kNoScheme || !config.qat.overrides.empty() || config.lora.rank > 0) {
    return {{"sparsity.kind",
             "expected none with qat or lora, got " + sparsity.kind + "; a linear is either"}};
  }
  if (is_pruned) {
    return find_pruned_weights_problem(config);
  }
  if (sparsity.end_step != 0 && sparsity.end_step < sparsity.start_step) {
    return {{"sparsity.end_step", "expected 0 or at least sparsity.start_step " +
                                      std::to_string(sparsity.start_step) + ", got " +
                                      std::to_string(sparsity.end_step)}};
  }
  if (sparsity.gradient == "masked" && sparsity.sr_ste_decay != 0) {
    return {{"sparsity.sr_ste_decay",
             "expected 0 with sparsity.gradient masked, which leaves masked weights alone"}};
  }
  return std::nullopt;
}

}  // namespace

void complete(TrainConfig& config) {
  ModelConfig& model = config.model;
  if (model.num_kv_heads == 0) {
    model.num_kv_heads = model.num_heads;
  }
  if (model.head_dim == 0 && model.num_heads > 0 && model.dim % model.num_heads == 0) {
    model.head_dim = model.dim / model.num_heads;
  }
  if (model.initial_load_path.empty()) {
    model.attention_bias = model.architecture == "qwen2";
    model.qk_norm = model.architecture == "qwen3";
  } else if (config.tokenizer.kind == "huggingface" && config.tokenizer.path.empty()) {
    config.tokenizer.path = model.initial_load_path;
  }
  if (config.validation.local_batch_size == 0) {
    config.validation.local_batch_size = config.training.local_batch_size;
  }
}

std::optional<ConfigProblem> find_problem(const TrainConfig& config) {
  Problem problem = find_missing(config);
  if (!problem && (config.model.initial_load_path.empty() || config.model.dim > 0)) {
    problem = find_shape_problem(config.model);
  }
  for (const auto find :
       {find_tokenizer_problem, find_data_problem, find_training_problem, find_optimizer_problem,
        find_float8_problem, find_qat_problem, find_distillation_problem, find_sparsity_problem,
        find_profiling_problem}) {
    problem = problem ? problem : find(config);
  }
  return problem;
}

void check(const TrainConfig& config) {
  if (const auto problem = find_problem(config)) {
    throw ConfigError(problem->key + ": " + problem->text);
  }
}

RankPlan plan_ranks(const TrainConfig& config, int64_t world_size) {
  const TrainingConfig& training = config.training;
  const int64_t replicate = config.parallelism.data_parallel_replicate_degree;
  const int64_t asked = config.parallelism.data_parallel_shard_degree;
  constexpr int64_t kMaxWorldSize = 1 << 20;
  if (world_size < 1 || world_size > kMaxWorldSize) {
    throw ConfigError("world size: expected 1 to " + text(kMaxWorldSize) + " ranks, got " +
                      text(world_size));
  }
  const int64_t shard = asked == -1 ? std::max<int64_t>(1, world_size / replicate) : asked;
  if (replicate * shard != world_size) {
    throw ConfigError("parallelism: expected data_parallel_replicate_degree (" + text(replicate) +
                      ") x data_parallel_shard_degree (" + text(asked) + ") to make the " +
                      text(world_size) + " ranks that were started, got " +
                      text(replicate * shard) + "; start that many or change the degrees");
  }
  const auto& reshard = config.parallelism.fsdp_reshard_after_forward;
  if (const auto kept_by = parse_integer(reshard).value; kept_by && shard % *kept_by != 0) {
    throw ConfigError("parallelism.fsdp_reshard_after_forward: expected a divisor of the " +
                      text(shard) + " ranks that share one copy, got " + reshard);
  }
  RankPlan plan = {.replicate_degree = replicate, .shard_degree = shard};
  const int64_t windows = training.local_batch_size * world_size;  // of one pass on every rank
  plan.global_batch_size = training.global_batch_size == -1 ? windows : training.global_batch_size;
  if (plan.global_batch_size % windows != 0) {
    const int64_t of_a_rank = plan.global_batch_size / world_size;
    const int64_t local = std::gcd(of_a_rank, training.local_batch_size);
    throw ConfigError(
        "training.global_batch_size: expected a multiple of training.local_batch_size (" +
        text(training.local_batch_size) + ") x " + text(world_size) + " ranks = " + text(windows) +
        ", got " + text(plan.global_batch_size) +
        (plan.global_batch_size % world_size == 0
             ? "; set training.local_batch_size=" + text(local)
             : "; set training.global_batch_size=" +
                   text((plan.global_batch_size / windows + 1) * windows)));
  }
  plan.accumulation_steps = plan.global_batch_size / windows;
  return plan;
}

}  // namespace narrowgauge::trainer

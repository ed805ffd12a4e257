// What people write instead of what they mean: each mistake is one error with its place and the
// right suggestion.

#include <gtest/gtest.h>

#include <string>
#include <string_view>

#include "trainer/config_reader.h"

namespace narrowgauge::trainer {
namespace {

// A complete configuration but for what stands behind it, on lines 1 to 4.
constexpr const char* kAbove =
    "# A configuration with a mistake.\n"
    "job: {run_dir: x}\n"
    "\n"
    "# The mistake:\n";
constexpr int kSectionLine = 5;

std::string error_of(const std::string& yaml) {
  try {
    read_config_text(yaml, "c.yaml", {});
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

// `line` in `section`; job is there already, so that it goes without the rest.
std::string with_line(std::string_view section, std::string_view line) {
  const std::string text = std::string(section) + ":\n  " + std::string(line) + "\n";
  return section == "job" ? "# A job.\n\n\n\n" + text : kAbove + text;
}

struct KeyMistake {
  std::string_view section, line, meant;
};

// Typos, other trainers' names, and keys in the wrong section.
constexpr KeyMistake kKeys[] = {
    {"model", "hidden_dim: 64", "model.dim"},
    {"model", "n_layers: 4", "model.num_layers"},
    {"model", "num_kv_head: 2", "model.num_kv_heads"},
    {"model", "ffn_dims: 4", "model.ffn_dim"},
    {"model", "vocabsize: 300", "model.vocab_size"},
    {"model", "rope_teta: 1e4", "model.rope_theta"},
    {"model", "tie_embeddings: true", "model.tie_word_embeddings"},
    {"model", "seq_len: 64", "training.seq_len"},
    {"model", "max_sequence_length: 64", "model.max_seq_len"},
    {"model", "type: llama", "model.architecture"},
    {"tokenizer", "name: bytes", "tokenizer.kind"},
    {"tokenizer", "tokenizer_path: x", "tokenizer.path"},
    {"data", "trian: [a]", "data.train"},
    {"data", "val: [a]", "data.validation"},
    {"data", "val_fraction: 0.1", "data.validation_fraction"},
    {"data", "seq_length: 12", "training.seq_len"},
    {"data", "batch_size: 4", "training.local_batch_size"},
    {"data", "dataset: x", "data.train"},
    {"training", "max_steps: 4", "training.steps"},
    {"training", "learning_rate: 1e-3", "optimizer.lr"},
    {"training", "lr: 1e-3", "optimizer.lr"},
    {"training", "warmup_steps: 5", "lr_scheduler.warmup_steps"},
    {"training", "batch_size: 4", "training.local_batch_size"},
    {"training", "gradient_accumulation_steps: 4", "training.global_batch_size"},
    {"training", "gradient_clipping: 1.0", "training.max_norm"},
    {"training", "epochs: 3", "training.steps"},
    {"training", "bf16: true", "training.mixed_precision_param"},
    {"training", "precision: bf16", "training.mixed_precision_param"},
    {"training", "sead: 1", "training.seed"},
    {"training", "optimizer: AdamW", "optimizer.name"},
    {"training", "mixed_precision: bfloat16", "training.mixed_precision_param"},
    {"optimizer", "learning_rate: 1e-3", "optimizer.lr"},
    {"optimizer", "betas: [0.9, 0.95]", "optimizer.beta1"},
    {"optimizer", "weigth_decay: 0.1", "optimizer.weight_decay"},
    {"optimizer", "warmup: 10", "lr_scheduler.warmup_steps"},
    {"optimizer", "clip_grad: 1", "training.max_norm"},
    {"optimizer", "type: AdamW", "optimizer.name"},
    {"lr_scheduler", "warm_up_steps: 10", "lr_scheduler.warmup_steps"},
    {"lr_scheduler", "type: cosine", "lr_scheduler.decay_type"},
    {"lr_scheduler", "min_lr: 1e-5", "lr_scheduler.min_lr_factor"},
    {"lr_scheduler", "lr_min: 0.1", "lr_scheduler.min_lr_factor"},
    {"float8", "recipe: rowwise", "float8.recipe_name"},
    {"float8", "enable_fp8_all_gather: true", "float8.enable_fsdp_float8_all_gather"},
    {"float8", "filter_fqn: [x]", "float8.filter_fqns"},
    {"float8", "amax_history: 4", "float8.amax_history_len"},
    {"qat", "groupsize: 32", "qat.group_size"},
    {"qat", "fake_quant_after: 3", "qat.fake_quant_after_n_steps"},
    {"qat", "weight_dtype: int4", "qat.scheme"},
    {"qat", "quantizer: x", "qat.scheme"},
    {"lora", "r: 8", "lora.rank"},
    {"lora", "lora_alpha: 8", "lora.alpha"},
    {"lora", "lora_dropout: 0.1", "lora.dropout"},
    {"lora", "module_to_save: [x]", "lora.modules_to_save"},
    {"lora", "target_modules: [x]", "lora.targets"},
    {"parallelism", "dp_shard: 2", "parallelism.data_parallel_shard_degree"},
    {"parallelism", "fsdp_reshard_after_forwards: never", "parallelism.fsdp_reshard_after_forward"},
    {"parallelism", "enable_cpu_offload: true", "training.enable_cpu_offload"},
    {"checkpoint", "save_interval: 3", "checkpoint.interval"},
    {"checkpoint", "keep_last: 3", "checkpoint.keep_latest_k"},
    {"checkpoint", "resume: auto", "checkpoint.load_step"},
    {"checkpoint", "folder: x", "job.run_dir"},
    {"checkpoint", "every: 10", "checkpoint.interval"},
    {"validation", "freq: 10", "validation.interval"},
    {"validation", "eval_interval: 10", "validation.interval"},
    {"validation", "max_steps: 10", "validation.max_batches"},
    {"metrics", "log_every: 10", "metrics.log_interval"},
    {"generation", "max_tokens: 10", "generation.max_new_tokens"},
    {"activation_checkpoint", "enabled: true", "activation_checkpoint.mode"},
    {"comm", "timeout: 10", "comm.train_timeout_seconds"},
    {"sparsity", "start: 3", "sparsity.start_step"},
    {"sparsity", "type: x", "sparsity.kind"},
    {"job", "output_dir: x", "job.run_dir"},
    {"job", "name: x", "job.run_dir"},
};

TEST(ConfigMistakes, AKeyIsFoundThatWasMeant) {
  static_assert(std::size(kKeys) >= 30);
  for (const auto& [section, line, meant] : kKeys) {
    const std::string key =
        std::string(section) + "." + std::string(line.substr(0, line.find(':')));
    EXPECT_EQ(error_of(with_line(section, line)), "c.yaml:" + std::to_string(kSectionLine + 1) +
                                                      ":3: unknown key " + key + "; did you mean " +
                                                      std::string(meant) + "?");
  }
}

struct SectionMistake {
  std::string_view written, meant;
};

constexpr SectionMistake kSections[] = {
    {"optimiser", "optimizer"},    {"train", "training"},  {"quantization", "qat"},
    {"scheduler", "lr_scheduler"}, {"fp8", "float8"},      {"fsdp", "parallelism"},
    {"dataset", "data"},           {"logging", "metrics"}, {"checkpoints", "checkpoint"},
    {"eval", "validation"},        {"Model", "model"},     {"peft", "lora"},
    {"tokeniser", "tokenizer"},
};

TEST(ConfigMistakes, ASectionIsFoundThatWasMeant) {
  for (const auto& [written, meant] : kSections) {
    EXPECT_EQ(error_of(with_line(written, "key: 3")), "c.yaml:5:1: unknown section " +
                                                          std::string(written) + "; did you mean " +
                                                          std::string(meant) + "?");
  }
}

TEST(ConfigMistakes, AKeyWithoutItsSectionIsFound) {
  EXPECT_EQ(
      error_of(std::string(kAbove) + "steps: 3\n"),
      "c.yaml:5:1: unknown section steps; did you mean training.steps? Keys stand in a section");
  EXPECT_EQ(error_of(std::string(kAbove) + "learning_rate: 3\n"),
            "c.yaml:5:1: unknown section learning_rate; did you mean optimizer.lr? Keys stand in a "
            "section");
}

// What resembles nothing gets no guess, but the list of what there is.
TEST(ConfigMistakes, NothingIsGuessedWhereNothingIsNear) {
  for (const auto& [section, line] : {std::pair("training", "compile: true"),
                                      std::pair("parallelism", "tensor_parallel_degree: 2"),
                                      std::pair("export", "format: gguf")}) {
    const std::string error = error_of(with_line(section, line));
    EXPECT_EQ(error.find("did you mean"), std::string::npos) << error;
    EXPECT_NE(error.find("; " + std::string(section) + " has "), std::string::npos) << error;
  }
}

struct ValueMistake {
  std::string_view key, value, remedy;
};

constexpr ValueMistake kValues[] = {
    {"training.steps", "1e3", "; write 1000"},
    {"training.steps", "10_000", "; write 10000"},
    {"training.steps", "\"100\"", "; remove the quotes"},
    {"training.steps", "-5", ""},
    {"training.seq_len", "4k", ""},
    {"training.local_batch_size", "auto", ""},
    {"training.max_norm", "-1", ""},
    {"training.device", "gpu", "; did you mean cuda?"},
    {"training.device", "cuda:0", "; did you mean cuda?"},
    {"training.dtype", "bf16", "; did you mean bfloat16?"},
    {"training.mixed_precision_reduce", "fp32", "; did you mean float32?"},
    {"training.enable_cpu_offload", "yes", "; write true"},
    {"training.enable_cpu_offload", "True", "; write true"},
    {"optimizer.name", "adamw", "; did you mean AdamW?"},
    {"optimizer.name", "AdamW8Bit", "; did you mean AdamW8bit?"},
    {"optimizer.lr", "0", ""},
    {"optimizer.lr", "1e-3f", ""},
    {"optimizer.beta1", "1", ""},
    {"optimizer.beta2", "95%", ""},
    {"lr_scheduler.decay_type", "cos", "; did you mean cosine?"},
    {"lr_scheduler.min_lr_factor", "10", ""},
    {"lr_scheduler.warmup_steps", "0.1", ""},
    {"float8.recipe_name", "row-wise", "; did you mean rowwise?"},
    {"float8.recipe_name", "Rowwise", "; did you mean rowwise?"},
    {"float8.filter_fqns", "lm_head", "; write [lm_head]"},
    {"qat.scheme", "int4", "; did you mean int4-weight-only?"},
    {"qat.scheme", "int4_weight_only", "; did you mean int4-weight-only?"},
    {"qat.scheme", "8dq4w", "; did you mean 8da4w?"},
    {"qat.scheme", "q4_0", "; did you mean gguf-q4_0?"},
    {"qat.group_size", "32.0", "; write 32"},
    {"qat.bits", "16", ""},
    {"parallelism.fsdp_reshard_after_forward", "true", "; did you mean always?"},
    {"activation_checkpoint.mode", "selectiv", "; did you mean selective?"},
    {"checkpoint.interval", "0", ""},
    {"checkpoint.keep_latest_k", "all", ""},
    {"generation.top_p", "1.5", ""},
    {"export.enable", "off", "; write false"},
    {"data.validation", "a.txt", "; write [a.txt]"},
    {"data.validation_fraction", "5", ""},
    {"model.architecture", "llama3", "; did you mean llama?"},
    {"sparsity.kind", "2:4", "; did you mean semi_structured?"},
};

TEST(ConfigMistakes, AValueIsRefusedWithWhatIsExpectedAndTheRemedy) {
  static_assert(std::size(kValues) >= 30);
  for (const auto& [key, value, remedy] : kValues) {
    const std::string section(key.substr(0, key.find('.')));
    const std::string name(key.substr(key.find('.') + 1));
    const std::string error = error_of(with_line(section, name + ": " + std::string(value)));
    const std::string begin =
        "c.yaml:6:" + std::to_string(name.size() + 5) + ": " + std::string(key) + ": expected ";
    EXPECT_TRUE(error.starts_with(begin)) << error << "\n" << begin;
    const bool is_quoted = value.front() == '"';
    const std::string got = is_quoted ? std::string(value) : "\"" + std::string(value) + "\"";
    const std::string end = ", got " + got + std::string(remedy);
    EXPECT_TRUE(error.ends_with(end)) << error << "\n" << end;
  }
}

}  // namespace
}  // namespace narrowgauge::trainer

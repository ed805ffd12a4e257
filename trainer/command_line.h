#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/usage_error.h"

namespace narrowgauge::trainer {

// The arguments of each subcommand as both binaries read them: the front one, narrowgauge, which is
// free of torch and turns mistakes away in milliseconds, and narrowgauge_torch, which does the work
// with the same arguments.

// Exit codes of both.
enum ExitCode : int {
  kExitDone = 0,
  kExitFailure = 1,
  kExitUsage = 2,     // bad arguments or configuration
  kExitStopped = 75,  // stopped by a signal after a checkpoint: start again to resume
};

struct TrainOptions {
  std::string config_path;
  std::vector<std::string> overrides;
  bool dry_run = false;  // look at what the run needs, and end
};

struct ValidateOptions {
  std::string config_path;
  std::vector<std::string> overrides;
  std::optional<int64_t> world_size;
};

struct PlanOptions {
  std::string config_path;
  std::vector<std::string> overrides;
  std::string gpu;   // empty: what this machine would train on
  int64_t gpus = 1;  // of a node, one rank each
  int64_t nodes = 1;
  double peak_tflops = 0;  // bf16; 0: that of the table
  double memory_gib = 0;   // 0: that of the table
  bool json = false;
};

struct ReportOptions {
  std::vector<std::string> runs;
  std::string output;  // empty: report.html in the first run
  bool csv = false;    // metrics.csv of each run instead of the page
};

struct BenchOptions {
  std::string config_path;
  std::vector<std::string> overrides;
  std::vector<std::string>
      modes;           // as mode_overrides takes them; empty: bf16 and the configured one
  int64_t steps = 12;  // of a process, after the warm-up
  int64_t warmup = 3;
  int64_t rounds = 3;
  std::string json;       // file to write; empty: none
  std::string compare;    // file that --json wrote before; empty: none
  double fail_below = 0;  // least speed beside it
  bool profile = false;   // say where the time of a step goes, instead
};

struct ConvergenceOptions {
  std::string family;
  std::string config_path;
  std::vector<std::string> overrides;
  std::vector<std::string> variants;  // empty: all of the family
  std::string output;                 // empty: runs/convergence_<family>
  int64_t seeds = 3;                  // 1, 2, ... of each variant
  int64_t jobs = 1;                   // runs at a time
  int64_t threads = 1;                // of each run
  double tolerance_percent = 0.25;
  bool table_only = false;  // train nothing
};

struct GenerateOptions {
  std::string model;      // Hugging Face directory, or a run directory with hf/ in it
  std::string tokenizer;  // empty: the model's; else "bytes", a tokenizer file or its directory
  std::string prompt;
  std::string chat_template;  // not empty: the prompt is what a user says, see ChatTemplate::load
  int64_t max_new_tokens = 100;
  double temperature = 0.8;
  double top_p = 0.95;
  int64_t seed = 42;
  std::string device = "auto";
  bool json = false;
};

struct EvalOptions {
  std::string model;
  std::string tokenizer;
  std::vector<std::string> tasks = {"perplexity"};
  // By task: the files that hold it. Perplexity and the comparison share theirs, "perplexity".
  std::map<std::string, std::vector<std::string>> data;
  std::vector<std::string> compare;  // models that stand beside `model`
  int64_t seq_len = 0;               // 0: the model's longest, at most 2048
  int64_t limit = 0;                 // items of a task; 0: all
  std::string device = "auto";
  bool json = false;
};

struct QuantizeOptions {
  std::string model;
  std::string output;
  std::string scheme;  // of quantization/scheme.h, or "auto"
  std::optional<int64_t> group_size;
  std::optional<int64_t> bits;
  std::optional<std::string> mapping;  // symmetric | asymmetric
  std::string method = "rtn";          // rtn | hqq | gptq | awq | smoothquant
  std::string tokenizer;
  std::vector<std::string> calibration;  // text files, or .bin files of token ids
  int64_t samples = 128;                 // windows of the calibration text
  int64_t seq_len = 0;                   // of a window; 0: the model's longest, at most 2048
  bool act_order = false;
  double alpha = 0.5;       // SmoothQuant
  double min_sqnr_db = 30;  // "auto"
  bool include_head = false;
};

struct PruneOptions {
  std::string model;
  std::string output;
  std::string method;   // magnitude | wanda | sparsegpt
  std::string pattern;  // a share, or keep:group
  std::string tokenizer;
  std::vector<std::string> calibration;  // text files, or .bin files of token ids
  int64_t samples = 128;                 // windows of the calibration text
  int64_t seq_len = 0;                   // of a window; 0: the model's longest, at most 2048
};

struct ExportOptions {
  std::string model;  // run directory, quantized model of ours, or Hugging Face directory
  std::string format = "huggingface";
  std::string output;          // empty: <model>/hf, <model>/hf-<format> or <model>/model.gguf
  std::string dtype = "auto";  // float32 for huggingface, else that of the model's forward
  std::string tokenizer;       // empty: the model's; else "bytes", a tokenizer file or directory
  int64_t step = -1;           // of a run's checkpoint; -1: the newest
  int64_t logits_tokens = 32;  // compared after writing; 0: none
};

struct CheckpointListOptions {
  std::string run;  // run directory, or the folder of its checkpoints
  bool json = false;
};

struct CheckpointVerifyOptions {
  std::string path;  // of a run, of its checkpoints, or one checkpoint
  bool json = false;
};

struct CheckpointDiffOptions {
  std::vector<std::string> paths;  // two; of a run its newest
  bool json = false;
};

struct CheckpointExportOptions {
  std::string path;
  std::string output;  // safetensors file
  std::string prefix;
};

struct CheckpointPruneOptions {
  std::string run;
  int64_t keep = 0;
  bool dry_run = false;
};

struct ImportOptions {
  std::string from;  // llama2.c .bin file, or Hugging Face directory
  std::string output;
};

struct TokenizerTrainOptions {
  std::string output;
  int64_t vocab_size = 0;
  std::string pre_tokenizer = "llama3";  // llama3 | gpt2
  std::vector<std::string> special_tokens = {"<|endoftext|>"};
  std::string text_field = "text";
  bool replace_invalid_utf8 = false;
  int64_t num_threads = 0;  // 0: one for each processor
  std::vector<std::string> sources;
};

struct TokenizerEncodeOptions {
  std::string tokenizer;  // as for data::guess_tokenizer, never "none"
  std::string kind;       // empty: guess it
  bool json = false;      // lines are JSON strings
  bool document = false;
  bool replace_invalid_utf8 = false;
};

struct TokenizerDecodeOptions {
  std::string tokenizer;
  std::string kind;
  bool json = false;
};

struct DataPrepareOptions {
  std::string tokenizer = "bytes";
  std::string kind;
  std::string text_field = "text";
  std::string chat_template;  // empty: lines of .jsonl are texts
  bool train_on_input = false;
  bool replace_invalid_utf8 = false;
  double validation_fraction = 0.05;
  int64_t seq_len = 0;      // above 0: say how documents fit into windows of this length
  std::string cache_dir;    // empty: data::default_cache_dir()
  int64_t num_threads = 0;  // 0: one for each processor
  std::vector<std::string> sources;
};

struct DataInspectOptions {
  std::string cache;      // of prepare, or .bin
  std::string tokenizer;  // empty: print ids alone
  std::string kind;
  int64_t window = 64;
  int64_t num_windows = 2;
  bool verify = false;
};

// Each takes the arguments after the subcommand's name and throws UsageError.
TrainOptions parse_train(std::span<const std::string> arguments);
ValidateOptions parse_validate(std::span<const std::string> arguments);
PlanOptions parse_plan(std::span<const std::string> arguments);
ReportOptions parse_report(std::span<const std::string> arguments);
BenchOptions parse_bench(std::span<const std::string> arguments);
ConvergenceOptions parse_convergence(std::span<const std::string> arguments);
GenerateOptions parse_generate(std::span<const std::string> arguments);
EvalOptions parse_eval(std::span<const std::string> arguments);
QuantizeOptions parse_quantize(std::span<const std::string> arguments);
PruneOptions parse_prune(std::span<const std::string> arguments);
ExportOptions parse_export(std::span<const std::string> arguments);
ImportOptions parse_import(std::span<const std::string> arguments);
CheckpointListOptions parse_checkpoint_list(std::span<const std::string> arguments);
CheckpointVerifyOptions parse_checkpoint_verify(std::span<const std::string> arguments);
CheckpointDiffOptions parse_checkpoint_diff(std::span<const std::string> arguments);
CheckpointExportOptions parse_checkpoint_export(std::span<const std::string> arguments);
CheckpointPruneOptions parse_checkpoint_prune(std::span<const std::string> arguments);
TokenizerTrainOptions parse_tokenizer_train(std::span<const std::string> arguments);
TokenizerEncodeOptions parse_tokenizer_encode(std::span<const std::string> arguments);
TokenizerDecodeOptions parse_tokenizer_decode(std::span<const std::string> arguments);
DataPrepareOptions parse_data_prepare(std::span<const std::string> arguments);
DataInspectOptions parse_data_inspect(std::span<const std::string> arguments);

// Usage, options with their defaults and examples of a subcommand, such as "train" or "tokenizer
// encode". REQUIRES: one that command_syntax knows.
std::string command_help(std::string_view command);

// --help or -h stands among the arguments, before any "--".
bool asks_for_help(std::span<const std::string> arguments);

}  // namespace narrowgauge::trainer

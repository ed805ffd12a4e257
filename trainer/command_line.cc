#include "trainer/command_line.h"

#include <algorithm>

#include "trainer/command_arguments.h"
#include "trainer/command_syntax.h"

namespace narrowgauge::trainer {
namespace {

constexpr int64_t kMaxThreads = 4096;

int64_t num_threads(const CommandArguments& parsed) {
  const int64_t threads = parsed.integer("threads", 0);
  if (threads > kMaxThreads) {
    throw parsed.mismatch("threads", "at most " + std::to_string(kMaxThreads));
  }
  return threads;
}

bool replaces_invalid_utf8(const CommandArguments& parsed) {
  return parsed.choice("invalid-utf8", {"error", "replace"}) == "replace";
}

std::string tokenizer(const CommandArguments& parsed) {
  if (parsed.text("tokenizer") == "none") {
    throw parsed.mismatch("tokenizer", "a tokenizer of text");
  }
  return parsed.text("tokenizer");
}

std::string tokenizer_kind(const CommandArguments& parsed) {
  return parsed.given("kind") ? parsed.choice("kind", {"huggingface", "gpt2", "sentencepiece"})
                              : "";
}

constexpr std::string_view kEvalTasks[] = {"perplexity", "hellaswag", "piqa", "lambada"};

// TASK=FILE for a task; without a name, a file belongs to the only task there is.
std::map<std::string, std::vector<std::string>> eval_data(const CommandArguments& parsed,
                                                          const std::vector<std::string>& tasks) {
  std::map<std::string, std::vector<std::string>> data;
  for (const std::string& item : parsed.list("data")) {
    const size_t sign = item.find('=');
    const std::string task = item.substr(0, sign);
    if (sign != std::string::npos &&
        std::find(std::begin(kEvalTasks), std::end(kEvalTasks), task) != std::end(kEvalTasks)) {
      data[task].push_back(item.substr(sign + 1));
    } else if (tasks.size() == 1) {
      data[tasks.front()].push_back(item);
    } else {
      throw parsed.mismatch("data", "TASK=FILE for each of several tasks");
    }
  }
  for (const std::string& task : tasks) {
    if (data.count(task) == 0) {
      throw parsed.mismatch("data", "a file for " + task, "; write " + task + "=FILE");
    }
    if (task != "perplexity" && data[task].size() > 1) {
      throw parsed.mismatch("data", "one file for " + task);
    }
  }
  return data;
}

}  // namespace

TrainOptions parse_train(std::span<const std::string> arguments) {
  const CommandArguments parsed("train", arguments);
  return {parsed.text("config"), parsed.list("overrides"), parsed.flag("dry-run")};
}

ValidateOptions parse_validate(std::span<const std::string> arguments) {
  const CommandArguments parsed("validate", arguments);
  ValidateOptions options = {parsed.text("config"), parsed.list("overrides"), std::nullopt};
  if (parsed.given("world-size")) {
    options.world_size = parsed.integer("world-size", 1);
  }
  return options;
}

PlanOptions parse_plan(std::span<const std::string> arguments) {
  const CommandArguments parsed("plan", arguments);
  return {.config_path = parsed.text("config"),
          .overrides = parsed.list("overrides"),
          .gpu = parsed.text("gpu"),
          .gpus = parsed.integer("gpus", 1),
          .nodes = parsed.integer("nodes", 1),
          .peak_tflops = parsed.number("peak-tflops", CommandArguments::kUnbounded, true),
          .memory_gib = parsed.number("memory-gib", CommandArguments::kUnbounded, true),
          .json = parsed.flag("json")};
}

ReportOptions parse_report(std::span<const std::string> arguments) {
  const CommandArguments parsed("report", arguments);
  const ReportOptions options = {parsed.list("runs"), parsed.text("output"), parsed.flag("csv")};
  if (options.csv && !options.output.empty()) {
    throw parsed.mismatch("output", "nothing beside --csv",
                          "; it writes metrics.csv into each run");
  }
  return options;
}

BenchOptions parse_bench(std::span<const std::string> arguments) {
  const CommandArguments parsed("bench", arguments);
  BenchOptions options = {
      .config_path = parsed.text("config"),
      .overrides = parsed.list("overrides"),
      .modes = parsed.list("modes"),
      .steps = parsed.integer("steps", 1),
      .warmup = parsed.integer("warmup", 0),
      .rounds = parsed.integer("rounds", 1),
      .json = parsed.text("json"),
      .compare = parsed.text("compare"),
      .fail_below = parsed.number("fail-below", CommandArguments::kUnbounded, true),
      .profile = parsed.flag("profile")};
  for (const char* const name : {"json", "compare", "rounds"}) {
    if (options.profile && parsed.given(name)) {
      throw parsed.mismatch(name, "nothing beside --profile", "; a profiled step is slower");
    }
  }
  if (parsed.given("fail-below") && options.compare.empty()) {
    throw parsed.mismatch("fail-below", "--compare beside it", "; name what to be as fast as");
  }
  return options;
}

ConvergenceOptions parse_convergence(std::span<const std::string> arguments) {
  const CommandArguments parsed("bench convergence", arguments);
  return {.family = parsed.text("family"),
          .config_path = parsed.text("config"),
          .overrides = parsed.list("overrides"),
          .variants = parsed.list("variant"),
          .output = parsed.text("output"),
          .seeds = parsed.integer("seeds", 1),
          .jobs = parsed.integer("jobs", 1),
          .threads = parsed.integer("threads", 1),
          .tolerance_percent = parsed.number("tolerance", CommandArguments::kUnbounded, true),
          .table_only = parsed.flag("table-only")};
}

GenerateOptions parse_generate(std::span<const std::string> arguments) {
  const CommandArguments parsed("generate", arguments);
  return {.model = parsed.text("model"),
          .tokenizer = parsed.text("tokenizer"),
          .prompt = parsed.text("prompt"),
          .chat_template = parsed.text("chat-template"),
          .max_new_tokens = parsed.integer("max-new-tokens", 1),
          .temperature = parsed.number("temperature", CommandArguments::kUnbounded, true),
          .top_p = parsed.number("top-p", 1.0, false),
          .seed = parsed.integer("seed", 0),
          .device = parsed.choice("device", {"auto", "cpu", "cuda"}),
          .json = parsed.flag("json")};
}

EvalOptions parse_eval(std::span<const std::string> arguments) {
  const CommandArguments parsed("eval", arguments);
  EvalOptions options = {.model = parsed.text("model"),
                         .tokenizer = parsed.text("tokenizer"),
                         .tasks = parsed.list("tasks"),
                         .data = {},
                         .compare = parsed.list("compare"),
                         .seq_len = parsed.integer("seq-len", 0),
                         .limit = parsed.integer("limit", 0),
                         .device = parsed.choice("device", {"auto", "cpu", "cuda"}),
                         .json = parsed.flag("json")};
  for (const std::string& task : options.tasks) {
    if (std::find(std::begin(kEvalTasks), std::end(kEvalTasks), task) == std::end(kEvalTasks)) {
      throw parsed.mismatch("tasks", "some of perplexity, hellaswag, piqa and lambada");
    }
  }
  if (options.tasks.empty()) {
    throw parsed.mismatch("tasks", "a task");
  }
  options.data = eval_data(parsed, options.tasks);
  if (!options.compare.empty() && options.data.count("perplexity") == 0) {
    throw parsed.mismatch("compare", "a text to compare on", "; add --data perplexity=FILE");
  }
  return options;
}

QuantizeOptions parse_quantize(std::span<const std::string> arguments) {
  const CommandArguments parsed("quantize", arguments);
  QuantizeOptions options = {
      .model = parsed.text("model"),
      .output = parsed.text("output"),
      .scheme = parsed.text("scheme"),
      .group_size = {},
      .bits = {},
      .mapping = {},
      .method = parsed.choice("method", {"rtn", "hqq", "gptq", "awq", "smoothquant"}),
      .tokenizer = parsed.text("tokenizer"),
      .calibration = parsed.list("calibration"),
      .samples = parsed.integer("samples", 1),
      .seq_len = parsed.integer("seq-len", 0),
      .act_order = parsed.flag("act-order"),
      .alpha = parsed.fraction("alpha"),
      .min_sqnr_db = parsed.number("min-sqnr-db", CommandArguments::kUnbounded, true),
      .include_head = parsed.flag("include-head")};
  if (parsed.given("group-size")) {
    options.group_size = parsed.integer("group-size", 1);
  }
  if (parsed.given("bits")) {
    options.bits = parsed.integer("bits", 1);
  }
  if (parsed.given("mapping")) {
    options.mapping = parsed.choice("mapping", {"symmetric", "asymmetric"});
  }
  const bool needs_text = options.method == "gptq" || options.method == "awq" ||
                          options.method == "smoothquant" || options.scheme == "auto";
  if (needs_text && options.calibration.empty()) {
    throw UsageError("--calibration: expected text for " +
                     (options.scheme == "auto" ? "--scheme auto" : "--method " + options.method) +
                     ", got none; name files of text like what the model will read");
  }
  if (options.scheme == "auto" && options.method != "rtn") {
    throw parsed.mismatch("method", "rtn with --scheme auto", "; its errors are those of rounding");
  }
  return options;
}

PruneOptions parse_prune(std::span<const std::string> arguments) {
  const CommandArguments parsed("prune", arguments);
  PruneOptions options = {.model = parsed.text("model"),
                          .output = parsed.text("output"),
                          .method = parsed.choice("method", {"magnitude", "wanda", "sparsegpt"}),
                          .pattern = parsed.text("pattern"),
                          .tokenizer = parsed.text("tokenizer"),
                          .calibration = parsed.list("calibration"),
                          .samples = parsed.integer("samples", 1),
                          .seq_len = parsed.integer("seq-len", 0)};
  if (options.method != "magnitude" && options.calibration.empty()) {
    throw UsageError("--calibration: expected text for --method " + options.method +
                     ", got none; name files of text like what the model will read");
  }
  return options;
}

ExportOptions parse_export(std::span<const std::string> arguments) {
  const CommandArguments parsed("export", arguments);
  ExportOptions options;
  options.model = parsed.text("model");
  options.format = parsed.choice(
      "format", {"huggingface", "torchao", "compressed-tensors", "fine-grained-fp8", "gguf"});
  options.output = parsed.text("output");
  options.dtype = parsed.choice("dtype", {"auto", "float32", "bfloat16", "float16"});
  options.tokenizer = parsed.text("tokenizer");
  options.step = parsed.integer("step", -1);
  options.logits_tokens = parsed.integer("logits-tokens", 0);
  return options;
}

ImportOptions parse_import(std::span<const std::string> arguments) {
  const CommandArguments parsed("import", arguments);
  return {parsed.text("from"), parsed.text("output")};
}

CheckpointListOptions parse_checkpoint_list(std::span<const std::string> arguments) {
  const CommandArguments parsed("checkpoint list", arguments);
  return {parsed.text("run"), parsed.flag("json")};
}

CheckpointVerifyOptions parse_checkpoint_verify(std::span<const std::string> arguments) {
  const CommandArguments parsed("checkpoint verify", arguments);
  return {parsed.text("path"), parsed.flag("json")};
}

CheckpointDiffOptions parse_checkpoint_diff(std::span<const std::string> arguments) {
  const CommandArguments parsed("checkpoint diff", arguments);
  CheckpointDiffOptions options = {parsed.list("paths"), parsed.flag("json")};
  if (options.paths.size() != 2) {
    throw UsageError("expected two checkpoints or runs, got " +
                     std::to_string(options.paths.size()));
  }
  return options;
}

CheckpointExportOptions parse_checkpoint_export(std::span<const std::string> arguments) {
  const CommandArguments parsed("checkpoint export", arguments);
  return {parsed.text("path"), parsed.text("output"), parsed.text("prefix")};
}

CheckpointPruneOptions parse_checkpoint_prune(std::span<const std::string> arguments) {
  const CommandArguments parsed("checkpoint prune", arguments);
  return {parsed.text("run"), parsed.integer("keep", 1), parsed.flag("dry-run")};
}

TokenizerTrainOptions parse_tokenizer_train(std::span<const std::string> arguments) {
  const CommandArguments parsed("tokenizer train", arguments);
  return {.output = parsed.text("output"),
          .vocab_size = parsed.integer("vocab-size", 1),
          .pre_tokenizer = parsed.choice("pre-tokenizer", {"llama3", "gpt2"}),
          .special_tokens = parsed.list("special-token"),
          .text_field = parsed.text("field"),
          .replace_invalid_utf8 = replaces_invalid_utf8(parsed),
          .num_threads = num_threads(parsed),
          .sources = parsed.list("sources")};
}

TokenizerEncodeOptions parse_tokenizer_encode(std::span<const std::string> arguments) {
  const CommandArguments parsed("tokenizer encode", arguments);
  return {.tokenizer = tokenizer(parsed),
          .kind = tokenizer_kind(parsed),
          .json = parsed.flag("json"),
          .document = parsed.flag("document"),
          .replace_invalid_utf8 = replaces_invalid_utf8(parsed)};
}

TokenizerDecodeOptions parse_tokenizer_decode(std::span<const std::string> arguments) {
  const CommandArguments parsed("tokenizer decode", arguments);
  return {tokenizer(parsed), tokenizer_kind(parsed), parsed.flag("json")};
}

DataPrepareOptions parse_data_prepare(std::span<const std::string> arguments) {
  const CommandArguments parsed("data prepare", arguments);
  return {.tokenizer = tokenizer(parsed),
          .kind = tokenizer_kind(parsed),
          .text_field = parsed.text("field"),
          .chat_template = parsed.text("chat-template"),
          .train_on_input = parsed.flag("train-on-input"),
          .replace_invalid_utf8 = replaces_invalid_utf8(parsed),
          .validation_fraction = parsed.fraction("validation-fraction"),
          .seq_len = parsed.integer("seq-len", 0),
          .cache_dir = parsed.text("cache-dir"),
          .num_threads = num_threads(parsed),
          .sources = parsed.list("sources")};
}

DataInspectOptions parse_data_inspect(std::span<const std::string> arguments) {
  const CommandArguments parsed("data inspect", arguments);
  return {.cache = parsed.text("cache"),
          .tokenizer = tokenizer(parsed),
          .kind = tokenizer_kind(parsed),
          .window = parsed.integer("window", 1),
          .num_windows = parsed.integer("windows", 0),
          .verify = parsed.flag("verify")};
}

std::string command_help(std::string_view command) {
  const CommandSyntax& syntax = command_syntax(command);
  std::string help = std::string(syntax.summary) + "\n\nusage: narrowgauge " +
                     std::string(command) + " " + std::string(syntax.usage) + "\n\n";
  for (const CommandArgument& argument : syntax.arguments) {
    std::string left = argument.is_option() ? "--" + std::string(argument.name) + " " : "";
    left += argument.value;
    left.resize(std::max<size_t>(left.size() + 2, 22), ' ');
    help += "  " + left + std::string(argument.doc) +
            (argument.fallback.empty() ? "" : " (" + std::string(argument.fallback) + ")") + "\n";
  }
  return help + (syntax.notes.empty() ? "" : "\n" + std::string(syntax.notes)) + "\nexamples:\n" +
         std::string(syntax.examples);
}

bool asks_for_help(std::span<const std::string> arguments) {
  const auto end = std::find(arguments.begin(), arguments.end(), "--");
  return std::any_of(arguments.begin(), end,
                     [](const std::string& a) { return a == "--help" || a == "-h"; });
}

}  // namespace narrowgauge::trainer

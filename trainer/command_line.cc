#include "trainer/command_line.h"

#include <algorithm>

// cxxopts splits lists at commas, and data.train=[a.txt,b.txt] is one argument: no argument holds
// NUL.
#define CXXOPTS_VECTOR_DELIMITER '\0'
#include <cxxopts.hpp>
#include <map>

#include "trainer/config_value.h"
#include "trainer/nearest_name.h"

namespace narrowgauge::trainer {
namespace {

// One --option or positional argument. Values stay text until one strict reading of numbers, the
// configuration's, has looked at them.
struct Argument {
  std::string_view name;   // long name
  std::string_view value;  // shown in help; empty: a flag
  std::string_view doc;
  std::string_view fallback = "";
  enum Kind { kOption, kPositional, kPositionalList } kind = kOption;
  bool is_required = false;
};

struct Syntax {
  std::string_view summary;
  std::string_view usage;
  std::vector<Argument> arguments;
  std::string_view examples;
};

const std::vector<Argument> kConfigAndOverrides = {
    {"config", "CONFIG", "YAML file", "", Argument::kPositional, true},
    {"overrides", "KEY=VALUE", "section.key=value, after the file", "", Argument::kPositionalList},
};

constexpr Argument kModel = {
    "model", "DIR", "Hugging Face directory, or a run directory", "", Argument::kOption, true};
constexpr Argument kTokenizer = {"tokenizer", "PATH",
                                 "bytes, or a tokenizer file or directory, instead of the model's"};
constexpr Argument kDevice = {"device", "NAME", "auto, cpu or cuda", "auto"};
constexpr Argument kJson = {"json", "", "print one JSON object"};

const std::map<std::string_view, Syntax>& syntaxes() {
  static const std::map<std::string_view, Syntax> all = {
      {"train",
       {"Trains the model of a configuration, or resumes the run its job.run_dir holds.",
        "CONFIG [section.key=value ...]", kConfigAndOverrides,
        "  narrowgauge train configs/quickstart.yaml\n"
        "  narrowgauge train configs/shakespeare_char.yaml training.steps=200 optimizer.lr=3.0e-4\n"
        "  mpirun -np 4 narrowgauge train configs/bench/llama_12m.yaml "
        "training.local_batch_size=2\n"}},
      {"validate",
       {"Checks a configuration without loading anything and prints it with all defaults.",
        "CONFIG [section.key=value ...] [--world-size N]",
        {kConfigAndOverrides[0],
         kConfigAndOverrides[1],
         {"world-size", "N", "check that the mesh and the batch fit N ranks"}},
        "  narrowgauge validate configs/quickstart.yaml\n"
        "  narrowgauge validate configs/quickstart.yaml training.global_batch_size=64 "
        "--world-size 4\n"}},
      {"generate",
       {"Continues a prompt.",
        "--model DIR [--prompt TEXT] [options]",
        {kModel,
         kTokenizer,
         {"prompt", "TEXT", "where to begin"},
         {"max-new-tokens", "N", "length of the continuation", "100"},
         {"temperature", "T", "0: always the likeliest token", "0.8"},
         {"top-p", "P", "sample among the likeliest tokens that hold this probability", "0.95"},
         {"seed", "N", "equal seeds, equal text", "42"},
         kDevice,
         kJson},
        "  narrowgauge generate --model runs/quickstart --prompt 'def forward(' --seed 7\n"
        "  narrowgauge generate --model runs/quickstart/hf --temperature 0 --json\n"}},
      {"eval",
       {"Measures a model.",
        "--model DIR --data FILE[,FILE...] [options]",
        {kModel,
         kTokenizer,
         {"tasks", "LIST", "perplexity: loss, and perplexity per token, byte and word",
          "perplexity"},
         {"data", "LIST", "text files, globs or directories, separated by commas", "",
          Argument::kOption, true},
         {"seq-len", "N", "window in tokens; 0: the model's longest, at most 2048", "0"},
         kDevice,
         kJson},
        "  narrowgauge eval --model runs/quickstart --tasks perplexity --data held_out.txt "
        "--seq-len "
        "256 --json\n"}},
      {"export",
       {"Writes a checkpoint as a Hugging Face directory.",
        "RUN [--output DIR] [--dtype NAME] [--step N]",
        {{"run", "RUN", "run directory", "", Argument::kPositional, true},
         {"output", "DIR", "where to write; default: RUN/hf"},
         {"dtype", "NAME", "float32 or bfloat16", "float32"},
         {"step", "N", "of the checkpoint; -1: the newest", "-1"}},
        "  narrowgauge export runs/quickstart --dtype bfloat16 --output quickstart_bf16\n"}},
      {"import",
       {"Turns a model of another program into a Hugging Face directory to start from.",
        "FROM --output DIR",
        {{"from", "FROM", "llama2.c .bin file, or Hugging Face directory", "",
          Argument::kPositional, true},
         {"output", "DIR", "where to write", "", Argument::kOption, true}},
        "  narrowgauge import stories260K.bin --output stories260K\n"}},
  };
  return all;
}

const Syntax& syntax_of(std::string_view command) {
  const auto found = syntaxes().find(command);
  if (found == syntaxes().end()) {
    throw std::logic_error("no syntax for the subcommand " + std::string(command));
  }
  return found->second;
}

// Arguments of one call, by name.
class ParsedArguments {
 public:
  ParsedArguments(std::string_view command, std::span<const std::string> arguments)
      : syntax_(syntax_of(command)) {
    cxxopts::Options options("narrowgauge " + std::string(command));
    std::vector<std::string> positional;
    for (const Argument& argument : syntax_.arguments) {
      const bool is_list = argument.kind == Argument::kPositionalList;
      options.add_options()(std::string(argument.name), "",
                            argument.value.empty() ? cxxopts::value<bool>()
                            : is_list              ? cxxopts::value<std::vector<std::string>>()
                                                   : text_value());
      if (argument.kind != Argument::kOption) {
        positional.emplace_back(argument.name);
      }
    }
    options.parse_positional(positional);
    options.allow_unrecognised_options();
    parse(options, arguments);
    require_all();
  }

  std::string text(const std::string& name) const {
    return given(name) ? result_[name].as<std::string>() : std::string(argument(name).fallback);
  }

  bool flag(const std::string& name) const { return given(name) && result_[name].as<bool>(); }

  bool given(const std::string& name) const { return result_.count(name) > 0; }

  // Positional arguments come as they are; the list of an option is separated by commas.
  std::vector<std::string> list(const std::string& name) const {
    if (argument(name).kind == Argument::kPositionalList) {
      return given(name) ? result_[name].as<std::vector<std::string>>()
                         : std::vector<std::string>();
    }
    std::vector<std::string> items;
    std::istringstream stream(text(name));
    for (std::string item; std::getline(stream, item, ',');) {
      items.push_back(item);
    }
    return items;
  }

  int64_t integer(const std::string& name, int64_t min) const {
    const auto parsed = parse_integer(text(name));
    if (!parsed.value || *parsed.value < min) {
      throw mismatch(name, "an integer of at least " + std::to_string(min), parsed.remedy);
    }
    return *parsed.value;
  }

  double number(const std::string& name, double max, bool zero_allowed) const {
    const auto parsed = parse_number(text(name));
    if (!parsed.value || *parsed.value > max || *parsed.value < 0 ||
        (*parsed.value == 0 && !zero_allowed)) {
      throw mismatch(name,
                     std::string("a number ") + (zero_allowed ? "of at least 0" : "above 0") +
                         (max < kUnbounded ? ", at most " + format_number(max) : ""),
                     parsed.remedy);
    }
    return *parsed.value;
  }

  std::string choice(const std::string& name, std::vector<std::string_view> choices) const {
    const std::string value = text(name);
    if (std::find(choices.begin(), choices.end(), value) == choices.end()) {
      throw mismatch(name, "one of " + join(choices), "");
    }
    return value;
  }

  UsageError mismatch(const std::string& name, const std::string& expected,
                      const std::string& remedy) const {
    return UsageError("--" + name + ": expected " + expected + ", got " + in_quotes(text(name)) +
                      remedy);
  }

  static constexpr double kUnbounded = 1e300;

 private:
  static std::shared_ptr<cxxopts::Value> text_value() { return cxxopts::value<std::string>(); }

  const Argument& argument(std::string_view name) const {
    return *std::find_if(syntax_.arguments.begin(), syntax_.arguments.end(),
                         [&](const Argument& argument) { return argument.name == name; });
  }

  void parse(cxxopts::Options& options, std::span<const std::string> arguments) {
    std::vector<const char*> argv = {"narrowgauge"};
    for (const std::string& argument : arguments) {
      argv.push_back(argument.c_str());
    }
    try {
      result_ = options.parse(static_cast<int>(argv.size()), argv.data());
    } catch (const cxxopts::exceptions::missing_argument&) {
      // Any other option would have taken the next argument, whatever it is.
      throw UsageError("expected a value after " + arguments.back() + ", got nothing");
    } catch (const cxxopts::exceptions::exception& error) {
      throw UsageError(error.what());
    }
    if (!result_.unmatched().empty()) {
      refuse(result_.unmatched().front());
    }
  }

  [[noreturn]] void refuse(const std::string& unknown) const {
    if (!unknown.starts_with("-")) {
      throw UsageError("unexpected argument " + in_quotes(unknown));
    }
    const std::string name =
        unknown.substr(std::min(unknown.find_first_not_of('-'), unknown.size()));
    const std::string bare = name.substr(0, name.find('='));
    if (bare.find('.') != std::string::npos) {
      throw UsageError("unknown option --" + bare + "; a key of the configuration is written " +
                       bare + "=VALUE");
    }
    std::vector<std::string_view> names;
    for (const Argument& argument : syntax_.arguments) {
      names.push_back(argument.name);
    }
    const auto near = nearest_name(bare, names);
    throw UsageError("unknown option " + unknown +
                     (near ? "; did you mean --" + std::string(*near) + "?" : ""));
  }

  void require_all() const {
    for (const Argument& argument : syntax_.arguments) {
      if (argument.is_required && text(std::string(argument.name)).empty()) {
        const bool is_option = argument.kind == Argument::kOption;
        throw UsageError("expected " + (is_option ? "--" + std::string(argument.name) + " " : "") +
                         std::string(argument.value) + ": " + std::string(argument.doc));
      }
    }
  }

  const Syntax& syntax_;
  cxxopts::ParseResult result_;
};

}  // namespace

TrainOptions parse_train(std::span<const std::string> arguments) {
  const ParsedArguments parsed("train", arguments);
  return {parsed.text("config"), parsed.list("overrides")};
}

ValidateOptions parse_validate(std::span<const std::string> arguments) {
  const ParsedArguments parsed("validate", arguments);
  ValidateOptions options = {parsed.text("config"), parsed.list("overrides"), std::nullopt};
  if (parsed.given("world-size")) {
    options.world_size = parsed.integer("world-size", 1);
  }
  return options;
}

GenerateOptions parse_generate(std::span<const std::string> arguments) {
  const ParsedArguments parsed("generate", arguments);
  return {.model = parsed.text("model"),
          .tokenizer = parsed.text("tokenizer"),
          .prompt = parsed.text("prompt"),
          .max_new_tokens = parsed.integer("max-new-tokens", 1),
          .temperature = parsed.number("temperature", ParsedArguments::kUnbounded, true),
          .top_p = parsed.number("top-p", 1.0, false),
          .seed = parsed.integer("seed", 0),
          .device = parsed.choice("device", {"auto", "cpu", "cuda"}),
          .json = parsed.flag("json")};
}

EvalOptions parse_eval(std::span<const std::string> arguments) {
  const ParsedArguments parsed("eval", arguments);
  EvalOptions options = {.model = parsed.text("model"),
                         .tokenizer = parsed.text("tokenizer"),
                         .tasks = parsed.list("tasks"),
                         .data = parsed.list("data"),
                         .seq_len = parsed.integer("seq-len", 0),
                         .device = parsed.choice("device", {"auto", "cpu", "cuda"}),
                         .json = parsed.flag("json")};
  const auto is_unknown = [](const std::string& task) { return task != "perplexity"; };
  if (options.tasks.empty() ||
      std::any_of(options.tasks.begin(), options.tasks.end(), is_unknown)) {
    throw parsed.mismatch("tasks", "perplexity", "");
  }
  return options;
}

ExportOptions parse_export(std::span<const std::string> arguments) {
  const ParsedArguments parsed("export", arguments);
  return {parsed.text("run"), parsed.text("output"),
          parsed.choice("dtype", {"float32", "bfloat16"}), parsed.integer("step", -1)};
}

ImportOptions parse_import(std::span<const std::string> arguments) {
  const ParsedArguments parsed("import", arguments);
  return {parsed.text("from"), parsed.text("output")};
}

std::string command_help(std::string_view command) {
  const Syntax& syntax = syntax_of(command);
  std::string help = std::string(syntax.summary) + "\n\nusage: narrowgauge " +
                     std::string(command) + " " + std::string(syntax.usage) + "\n\n";
  for (const Argument& argument : syntax.arguments) {
    std::string left =
        argument.kind == Argument::kOption ? "--" + std::string(argument.name) + " " : "";
    left += argument.value;
    left.resize(std::max<size_t>(left.size() + 2, 22), ' ');
    help += "  " + left + std::string(argument.doc) +
            (argument.fallback.empty() ? "" : " (" + std::string(argument.fallback) + ")") + "\n";
  }
  return help + "\nexamples:\n" + std::string(syntax.examples);
}

bool asks_for_help(std::span<const std::string> arguments) {
  const auto end = std::find(arguments.begin(), arguments.end(), "--");
  return std::any_of(arguments.begin(), end,
                     [](const std::string& a) { return a == "--help" || a == "-h"; });
}

}  // namespace narrowgauge::trainer

// The front binary, `narrowgauge`. It answers --help, validate, plan, report, checkpoint, tokenizer
// and data by itself and links no torch, whose loading alone takes half a second. For the other
// subcommands it checks the arguments and the configuration and then becomes narrowgauge_torch, its
// sibling, with the same arguments; so a typo costs milliseconds on any number of ranks.

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "trainer/bench_command.h"
#include "trainer/checkpoint_command.h"
#include "trainer/command_line.h"
#include "trainer/config_check.h"
#include "trainer/config_docs.h"
#include "trainer/config_reader.h"
#include "trainer/config_writer.h"
#include "trainer/convergence_command.h"
#include "trainer/data_command.h"
#include "trainer/nearest_name.h"
#include "trainer/plan_command.h"
#include "trainer/preflight.h"
#include "trainer/report_command.h"
#include "trainer/tokenizer_command.h"

namespace narrowgauge::trainer {
namespace {

constexpr const char* kVersion = "0.1.0";

using Arguments = std::span<const std::string>;

// Replaces this process; returns only by an exception.
[[noreturn]] void become_torch_binary(const std::string& command, Arguments arguments) {
  const auto sibling =
      std::filesystem::read_symlink("/proc/self/exe").parent_path() / "narrowgauge_torch";
  std::vector<std::string> copies = {sibling.string(), command};
  copies.insert(copies.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& copy : copies) {
    argv.push_back(copy.data());
  }
  argv.push_back(nullptr);
  execv(sibling.c_str(), argv.data());
  throw std::runtime_error("expected a program " + sibling.string() + ", got " +
                           std::strerror(errno) + "; build //trainer:narrowgauge_torch");
}

// A number in the environment: mpirun and srun announce ranks there before MPI is initialised.
std::optional<int64_t> number_in_environment(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr) {
    return std::nullopt;
  }
  int64_t number = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, number);
  return error == std::errc() && stop == end ? std::optional(number) : std::nullopt;
}

std::optional<int64_t> announced_world_size() {
  return number_in_environment("OMPI_COMM_WORLD_SIZE");
}

int64_t announced_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"}) {
    if (const auto rank = number_in_environment(name)) {
      return *rank;
    }
  }
  return 0;
}

int dry_run(const TrainConfig& config, int64_t num_ranks) {
  bool all_met = true;
  for (const PreflightCheck& check : preflight(config, num_ranks)) {
    all_met = all_met && check.is_met;
    std::cout << (check.is_met ? "ok      " : "problem ") << check.name << ": " << check.text
              << "\n";
  }
  return all_met ? kExitDone : kExitFailure;
}

int train(Arguments arguments) {
  const TrainOptions options = parse_train(arguments);
  const TrainConfig config = read_config(options.config_path, options.overrides);
  const auto world_size = announced_world_size();
  if (options.dry_run) {
    return announced_rank() == 0 ? dry_run(config, world_size.value_or(1)) : kExitDone;
  }
  if (world_size) {
    plan_ranks(config, *world_size);
  }
  become_torch_binary("train", arguments);
}

int validate(Arguments arguments) {
  const ValidateOptions options = parse_validate(arguments);
  const TrainConfig config = read_config(options.config_path, options.overrides);
  std::string header = "# " + options.config_path + ": ok\n";
  if (options.world_size) {
    const RankPlan plan = plan_ranks(config, *options.world_size);
    header += "# " + std::to_string(plan.world_size()) +
              " ranks: " + std::to_string(plan.replicate_degree) + " replicas x " +
              std::to_string(plan.shard_degree) + " shards; a step is " +
              std::to_string(plan.global_batch_size) + " windows, " +
              std::to_string(plan.global_batch_size * config.training.seq_len) + " tokens, in " +
              std::to_string(plan.accumulation_steps) + " passes\n";
  }
  std::cout << header << to_yaml(config);
  return kExitDone;
}

void expect_one_process(const std::string& command) {
  const int64_t num_ranks = announced_world_size().value_or(1);
  if (num_ranks > 1) {
    throw UsageError("expected one process, got " + std::to_string(num_ranks) +
                     " ranks; only train runs on several, so start " + command + " without mpirun");
  }
}

// The commands of narrowgauge_torch that are for one process; `parse` looks for mistakes.
template <auto parse>
int hand_over(const std::string& command, Arguments arguments) {
  parse(arguments);
  expect_one_process(command);
  become_torch_binary(command, arguments);
}

int generate(Arguments arguments) { return hand_over<parse_generate>("generate", arguments); }
int eval(Arguments arguments) { return hand_over<parse_eval>("eval", arguments); }
int quantize(Arguments arguments) { return hand_over<parse_quantize>("quantize", arguments); }
int prune(Arguments arguments) { return hand_over<parse_prune>("prune", arguments); }
int export_run(Arguments arguments) { return hand_over<parse_export>("export", arguments); }
int import_model(Arguments arguments) { return hand_over<parse_import>("import", arguments); }

int plan(Arguments a) { return plan_command(parse_plan(a)); }
int report(Arguments a) { return report_command(parse_report(a)); }
int bench(Arguments a) {
  const BenchOptions options = parse_bench(a);
  expect_one_process("bench");
  return bench_command(options);
}
int bench_convergence(Arguments a) {
  const ConvergenceOptions options = parse_convergence(a);
  expect_one_process("bench convergence");
  return convergence_command(options);
}
int tokenizer_train(Arguments a) { return train_tokenizer(parse_tokenizer_train(a)); }
int tokenizer_encode(Arguments a) { return encode_lines(parse_tokenizer_encode(a)); }
int tokenizer_decode(Arguments a) { return decode_lines(parse_tokenizer_decode(a)); }
int data_prepare(Arguments a) { return prepare_data(parse_data_prepare(a)); }
int data_inspect(Arguments a) { return inspect_data(parse_data_inspect(a)); }

int checkpoint_list(Arguments a) { return list_command(parse_checkpoint_list(a)); }
int checkpoint_verify(Arguments a) { return verify_command(parse_checkpoint_verify(a)); }
int checkpoint_diff(Arguments a) { return diff_command(parse_checkpoint_diff(a)); }
int checkpoint_export(Arguments a) { return export_whole_command(parse_checkpoint_export(a)); }
int checkpoint_prune(Arguments a) { return prune_command(parse_checkpoint_prune(a)); }

int test(Arguments) {
  throw UsageError("expected the launcher to run the tests: ./narrowgauge test, in the repository");
}

int help(Arguments arguments);

struct Command {
  std::string_view name;  // "train"; or "tokenizer train", one of the group "tokenizer"
  std::string_view summary;
  int (*run)(Arguments arguments);  // what follows the name; returns the exit code
};

constexpr Command kCommands[] = {
    {"train", "train a model, or resume its run", train},
    {"validate", "check a configuration and print it with all defaults", validate},
    {"plan", "tell what a run needs and how fast it would be", plan},
    {"report", "write a page about runs, or their metrics as CSV", report},
    {"bench", "time training steps in several modes", bench},
    {"bench convergence", "compare final losses of variants, over seeds", bench_convergence},
    {"generate", "continue a prompt", generate},
    {"eval", "measure a model: perplexity, tasks, divergence from another", eval},
    {"quantize", "round a model's weights to codes, after training", quantize},
    {"prune", "set weights of a model to zero, after training", prune},
    {"export", "write a checkpoint as a Hugging Face directory", export_run},
    {"import", "turn a model of another program into a Hugging Face directory", import_model},
    {"checkpoint list", "list the checkpoints of a run", checkpoint_list},
    {"checkpoint verify", "read every byte of checkpoints", checkpoint_verify},
    {"checkpoint diff", "tell what differs between two checkpoints", checkpoint_diff},
    {"checkpoint export", "write a checkpoint as one safetensors file", checkpoint_export},
    {"checkpoint prune", "delete old checkpoints", checkpoint_prune},
    {"tokenizer train", "train a tokenizer on text", tokenizer_train},
    {"tokenizer encode", "turn lines of text into token ids", tokenizer_encode},
    {"tokenizer decode", "turn lines of token ids into text", tokenizer_decode},
    {"data prepare", "tokenize data ahead of a run", data_prepare},
    {"data inspect", "print what a file of token ids holds", data_inspect},
    {"test", "build and run every test (./narrowgauge only)", test},
    {"help", "help of a subcommand; `help config` lists every key of a configuration", help},
};

// The commands below `group`; all for "".
std::string list_commands(std::string_view group) {
  std::string text;
  for (const Command& command : kCommands) {
    if (command.name.starts_with(group)) {
      std::string name(command.name);
      name.resize(18, ' ');
      text += "  " + name + std::string(command.summary) + "\n";
    }
  }
  return text;
}

std::string overview() {
  return "Trains language models in narrow number formats.\n\n"
         "usage: narrowgauge COMMAND [ARGUMENT ...]\n\n" +
         list_commands("") +
         "\nexamples:\n"
         "  narrowgauge train configs/quickstart.yaml\n"
         "  mpirun -np 4 narrowgauge train configs/quickstart.yaml training.local_batch_size=4\n"
         "  narrowgauge generate --model runs/quickstart --prompt 'def forward('\n\n"
         "`narrowgauge COMMAND --help` tells more. Exit codes: 0 done, 1 failure, 2 bad arguments "
         "or\n"
         "configuration, 75 stopped by a signal after a checkpoint (start again to resume).\n";
}

std::string group_help(const std::string& group) {
  return "usage: narrowgauge " + group + " COMMAND [ARGUMENT ...]\n\n" +
         list_commands(group + " ") + "\n`narrowgauge " + group + " COMMAND --help` tells more.\n";
}

bool is_help(const std::string& argument) {
  return argument == "--help" || argument == "-h" || argument == "help";
}

// The words that may follow `prefix` ("" or "tokenizer "), each once.
std::vector<std::string_view> words_after(std::string_view prefix) {
  std::vector<std::string_view> words;
  for (const Command& command : kCommands) {
    if (command.name.starts_with(prefix)) {
      const std::string_view rest = command.name.substr(prefix.size());
      const std::string_view word = rest.substr(0, rest.find(' '));
      if (words.empty() || words.back() != word) {
        words.push_back(word);
      }
    }
  }
  return words;
}

const Command* find_command(const std::string& name) {
  const auto found = std::find_if(std::begin(kCommands), std::end(kCommands),
                                  [&](const Command& command) { return command.name == name; });
  return found == std::end(kCommands) ? nullptr : found;
}

// The name of a command as the first one or two arguments give it, or of a group when nothing or a
// request for help follows it. `known` becomes what of it is right, for messages.
std::string find_name(Arguments arguments, std::string& known) {
  std::string name;
  for (const std::string& argument : arguments) {
    const std::string prefix = name.empty() ? "" : name + " ";
    const std::vector<std::string_view> words = words_after(prefix);
    if (words.empty() || (!name.empty() && is_help(argument))) {
      break;
    }
    if (std::find(words.begin(), words.end(), argument) == words.end()) {
      if (find_command(name) != nullptr) {
        break;  // an argument of "bench", which "bench convergence" has at its side
      }
      const auto near = nearest_name(argument, words);
      throw UsageError("unknown command " + argument +
                       (near ? "; did you mean " + std::string(*near) + "?"
                             : "; the commands are " + join(words)));
    }
    name = known = prefix + argument;
  }
  return name;
}

// The arguments behind the words of a name.
Arguments behind(const std::string& name, Arguments arguments) {
  return arguments.subspan(1 + std::count(name.begin(), name.end(), ' '));
}

void print_help(const std::string& name) {
  if (name == "help") {
    std::cout << overview();
  } else {
    std::cout << (find_command(name) == nullptr ? group_help(name) : command_help(name));
  }
}

int help(Arguments arguments) {
  if (arguments.empty() || is_help(arguments[0])) {
    std::cout << overview();
  } else if (arguments[0] == "config") {
    std::cout << config_docs();
  } else {
    std::string known;
    const std::string name = find_name(arguments, known);
    const Arguments rest = behind(name, arguments);
    if (!rest.empty() && !is_help(rest[0])) {
      throw UsageError("unexpected argument " + rest[0] + " after help " + name);
    }
    print_help(name);
  }
  return kExitDone;
}

int dispatch(Arguments arguments, std::string& known) {
  if (arguments.empty()) {
    std::cerr << overview();
    return kExitUsage;
  }
  if (arguments[0] == "--version") {
    std::cout << "narrowgauge " << kVersion << "\n";
    return kExitDone;
  }
  if (arguments[0] == "--help" || arguments[0] == "-h") {
    return help({});
  }
  const std::string name = find_name(arguments, known);
  const Arguments rest = behind(name, arguments);
  const Command* command = find_command(name);
  if (command == nullptr && rest.empty()) {
    throw UsageError("expected a command after it: " + join(words_after(name + " ")));
  }
  if (command == nullptr || asks_for_help(rest)) {
    print_help(name);
    return kExitDone;
  }
  return command->run(rest);
}

// All ranks of mpirun find the same mistake; rank 0 tells it. Its end makes mpirun end the others,
// so one that lives on met a mistake that rank 0 did not.
void print_error(const std::string& text) {
  const int64_t rank = announced_rank();
  if (rank == 0) {
    std::cerr << text;
    return;
  }
  std::this_thread::sleep_for(std::chrono::seconds(2));
  std::cerr << "rank " + std::to_string(rank) + ": " + text;
}

int run(Arguments arguments) {
  std::string known;
  const auto program = [&] { return "narrowgauge" + (known.empty() ? "" : " " + known); };
  try {
    const int code = dispatch(arguments, known);
    if (!std::cout.flush() || std::ferror(stdout) != 0) {
      throw std::runtime_error("expected to write to standard output, got an error");
    }
    return code;
  } catch (const ConfigError& error) {
    print_error(program() + ": " + error.what() + "\n");
    return kExitUsage;
  } catch (const UsageError& error) {
    print_error(program() + ": " + error.what() + "\nsee " + program() + " --help\n");
    return kExitUsage;
  } catch (const std::exception& error) {
    print_error(program() + ": " + error.what() + "\n");
    return kExitFailure;
  }
}

}  // namespace
}  // namespace narrowgauge::trainer

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + std::min(argc, 1), argv + argc);
  return narrowgauge::trainer::run(arguments);
}

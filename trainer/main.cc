// The front binary, `narrowgauge`. It answers --help, validate, tokenizer and data by itself and
// links no torch, whose loading alone takes half a second. For the other subcommands it checks the
// arguments and the configuration and then becomes narrowgauge_torch, its sibling, with the same
// arguments; so a typo costs milliseconds on any number of ranks.

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

#include "trainer/command_line.h"
#include "trainer/config_check.h"
#include "trainer/config_docs.h"
#include "trainer/config_reader.h"
#include "trainer/config_writer.h"
#include "trainer/data_command.h"
#include "trainer/nearest_name.h"
#include "trainer/tokenizer_command.h"

namespace narrowgauge::trainer {
namespace {

constexpr const char* kVersion = "0.1.0";

using Arguments = std::span<const std::string>;

// Replaces this process; returns only by an exception.
[[noreturn]] void become_torch_binary(const char* command, Arguments arguments) {
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

// The number of ranks that mpirun started, where its environment says so before MPI is initialised.
std::optional<int64_t> announced_world_size() {
  const char* text = std::getenv("OMPI_COMM_WORLD_SIZE");
  if (text == nullptr) {
    return std::nullopt;
  }
  int64_t size = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, size);
  return error == std::errc() && stop == end ? std::optional(size) : std::nullopt;
}

int train(Arguments arguments) {
  const TrainOptions options = parse_train(arguments);
  const TrainConfig config = read_config(options.config_path, options.overrides);
  if (const auto world_size = announced_world_size()) {
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

int generate(Arguments arguments) {
  parse_generate(arguments);
  become_torch_binary("generate", arguments);
}

int eval(Arguments arguments) {
  parse_eval(arguments);
  become_torch_binary("eval", arguments);
}

int export_run(Arguments arguments) {
  parse_export(arguments);
  become_torch_binary("export", arguments);
}

int import_model(Arguments arguments) {
  parse_import(arguments);
  become_torch_binary("import", arguments);
}

int help(Arguments arguments);

struct Command {
  const char* name;
  const char* summary;
  int (*run)(Arguments arguments);  // what follows the name; returns the exit code
  bool explains_itself = false;     // --help is passed to `run`
};

constexpr Command kCommands[] = {
    {"train", "train a model, or resume its run", train},
    {"validate", "check a configuration and print it with all defaults", validate},
    {"generate", "continue a prompt", generate},
    {"eval", "measure a model: loss and perplexity", eval},
    {"export", "write a checkpoint as a Hugging Face directory", export_run},
    {"import", "turn a model of another program into a Hugging Face directory", import_model},
    {"tokenizer", "train a tokenizer, encode and decode text", tokenizer_command, true},
    {"data", "tokenize data ahead of a run", data_command, true},
    {"help", "help of a subcommand; `help config` lists every key of a configuration", help, true},
};

std::string overview() {
  std::string text =
      "Trains language models in narrow number formats.\n\n"
      "usage: narrowgauge COMMAND [ARGUMENT ...]\n\n";
  for (const Command& command : kCommands) {
    std::string name = command.name;
    name.resize(12, ' ');
    text += "  " + name + command.summary + "\n";
  }
  return text +
         "  test        build and run every test (./narrowgauge only)\n\n"
         "examples:\n"
         "  narrowgauge train configs/quickstart.yaml\n"
         "  mpirun -np 4 narrowgauge train configs/quickstart.yaml training.local_batch_size=4\n"
         "  narrowgauge generate --model runs/quickstart --prompt 'def forward('\n\n"
         "`narrowgauge COMMAND --help` tells more. Exit codes: 0 done, 1 failure, 2 bad arguments "
         "or\n"
         "configuration, 75 stopped by a signal after a checkpoint (start again to resume).\n";
}

const Command& find_command(const std::string& name) {
  std::vector<std::string_view> names;
  for (const Command& command : kCommands) {
    names.emplace_back(command.name);
    if (name == command.name) {
      return command;
    }
  }
  const auto near = nearest_name(name, names);
  throw UsageError(
      "unknown command " + name +
      (near ? "; did you mean " + std::string(*near) + "?" : "; the commands are " + join(names)));
}

int run_command(const Command& command, Arguments arguments) {
  if (!command.explains_itself && asks_for_help(arguments)) {
    std::cout << command_help(command.name);
    return kExitDone;
  }
  return command.run(arguments);
}

int help(Arguments arguments) {
  if (arguments.empty() || arguments[0].starts_with("-")) {
    std::cout << overview();
  } else if (arguments[0] == "config") {
    std::cout << config_docs();
  } else if (arguments[0] == "help") {
    std::cout << overview();
  } else {
    const std::array<std::string, 1> ask = {"--help"};
    return run_command(find_command(arguments[0]), ask);
  }
  return kExitDone;
}

int dispatch(Arguments arguments) {
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
  return run_command(find_command(arguments[0]), arguments.subspan(1));
}

int run(Arguments arguments) {
  const std::string name =
      arguments.empty() || arguments[0].starts_with("-") ? "" : " " + arguments[0];
  try {
    const int code = dispatch(arguments);
    if (!std::cout.flush()) {
      throw std::runtime_error("expected to write to standard output, got an error");
    }
    return code;
  } catch (const ConfigError& error) {
    std::cerr << "narrowgauge" << name << ": " << error.what() << "\n";
    return kExitUsage;
  } catch (const UsageError& error) {
    std::cerr << "narrowgauge" << name << ": " << error.what() << "\nsee narrowgauge" << name
              << " --help\n";
    return kExitUsage;
  } catch (const std::exception& error) {
    std::cerr << "narrowgauge" << name << ": " << error.what() << "\n";
    return kExitFailure;
  }
}

}  // namespace
}  // namespace narrowgauge::trainer

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + std::min(argc, 1), argv + argc);
  return narrowgauge::trainer::run(arguments);
}

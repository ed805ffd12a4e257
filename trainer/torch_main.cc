// narrowgauge_torch: the half of the program that links libtorch. narrowgauge (main.cc) has read
// the same arguments and found nothing wrong with them.

#include <c10/util/Exception.h>

#include <exception>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "comm/mpi_session.h"
#include "trainer/command_line.h"
#include "trainer/config.h"
#include "trainer/eval_command.h"
#include "trainer/export_command.h"
#include "trainer/generate_command.h"
#include "trainer/import_command.h"
#include "trainer/prune_command.h"
#include "trainer/quantize_command.h"
#include "trainer/train_command.h"

namespace narrowgauge::trainer {
namespace {

using Command = std::function<int(std::span<const std::string>, comm::MpiSession&)>;

const std::map<std::string, Command>& commands() {
  using Arguments = std::span<const std::string>;
  using Session = comm::MpiSession;
  static const std::map<std::string, Command> kCommands = {
      {"train", [](Arguments a, Session& s) { return train_command(parse_train(a), s); }},
      {"generate", [](Arguments a, Session&) { return generate_command(parse_generate(a)); }},
      {"eval", [](Arguments a, Session&) { return eval_command(parse_eval(a)); }},
      {"export", [](Arguments a, Session&) { return export_command(parse_export(a)); }},
      {"quantize", [](Arguments a, Session&) { return quantize_command(parse_quantize(a)); }},
      {"prune", [](Arguments a, Session&) { return prune_command(parse_prune(a)); }},
      {"import", [](Arguments a, Session&) { return import_command(parse_import(a)); }},
  };
  return kCommands;
}

int run(const std::vector<std::string>& arguments) {
  comm::MpiSession session;
  try {
    const auto command = commands().find(arguments.empty() ? "" : arguments.front());
    if (command == commands().end()) {
      throw UsageError(
          "expected a command of narrowgauge that needs libtorch; run narrowgauge instead");
    }
    return command->second(std::span(arguments).subspan(1), session);
  } catch (const UsageError& error) {
    return session.fail(error.what(), kExitUsage);
  } catch (const ConfigError& error) {
    return session.fail(error.what(), kExitUsage);
  } catch (const c10::Error& error) {
    return session.fail(error.what_without_backtrace(), kExitFailure);
  } catch (const std::exception& error) {
    return session.fail(error.what(), kExitFailure);
  }
}

}  // namespace
}  // namespace narrowgauge::trainer

int main(int argc, char** argv) { return narrowgauge::trainer::run({argv + 1, argv + argc}); }

#include "trainer/command_arguments.h"

#include <algorithm>
#include <sstream>

// cxxopts splits lists at commas, and data.train=[a.txt,b.txt] is one argument: no argument holds
// NUL.
#define CXXOPTS_VECTOR_DELIMITER '\0'
#include <cxxopts.hpp>

#include "trainer/config_value.h"
#include "trainer/nearest_name.h"

namespace narrowgauge::trainer {
namespace {

std::shared_ptr<cxxopts::Value> value_of(const CommandArgument& argument) {
  if (argument.value.empty()) {
    return cxxopts::value<bool>();
  }
  if (argument.is_list()) {
    return cxxopts::value<std::vector<std::string>>();
  }
  return cxxopts::value<std::string>();
}

}  // namespace

struct CommandArguments::Parsed {
  cxxopts::ParseResult result;
};

CommandArguments::CommandArguments(std::string_view command, std::span<const std::string> arguments)
    : syntax_(command_syntax(command)), parsed_(std::make_unique<Parsed>()) {
  parse(arguments);
  require_all();
}

CommandArguments::~CommandArguments() = default;

bool CommandArguments::given(const std::string& name) const {
  return parsed_->result.count(name) > 0;
}

bool CommandArguments::flag(const std::string& name) const {
  return given(name) && parsed_->result[name].as<bool>();
}

std::string CommandArguments::text(const std::string& name) const {
  return given(name) ? parsed_->result[name].as<std::string>()
                     : std::string(argument(name).fallback);
}

std::vector<std::string> CommandArguments::list(const std::string& name) const {
  if (argument(name).is_list()) {
    if (given(name)) {
      return parsed_->result[name].as<std::vector<std::string>>();
    }
    const std::string_view fallback = argument(name).fallback;
    return fallback.empty() ? std::vector<std::string>() : std::vector{std::string(fallback)};
  }
  std::vector<std::string> items;
  std::istringstream stream(text(name));
  for (std::string item; std::getline(stream, item, ',');) {
    items.push_back(item);
  }
  return items;
}

int64_t CommandArguments::integer(const std::string& name, int64_t min) const {
  const auto parsed = parse_integer(text(name));
  if (!parsed.value || *parsed.value < min) {
    throw mismatch(name, "an integer of at least " + std::to_string(min), parsed.remedy);
  }
  return *parsed.value;
}

double CommandArguments::number(const std::string& name, double max, bool zero_allowed) const {
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

double CommandArguments::fraction(const std::string& name) const {
  const auto parsed = parse_number(text(name));
  if (!parsed.value || *parsed.value < 0 || *parsed.value >= 1) {
    throw mismatch(name, "a number of at least 0, below 1", parsed.remedy);
  }
  return *parsed.value;
}

std::string CommandArguments::choice(const std::string& name,
                                     const std::vector<std::string_view>& choices) const {
  const std::string value = text(name);
  if (std::find(choices.begin(), choices.end(), value) == choices.end()) {
    throw mismatch(name, "one of " + join(choices));
  }
  return value;
}

UsageError CommandArguments::mismatch(const std::string& name, const std::string& expected,
                                      const std::string& remedy) const {
  return UsageError("--" + name + ": expected " + expected + ", got " + in_quotes(text(name)) +
                    remedy);
}

const CommandArgument& CommandArguments::argument(std::string_view name) const {
  return *std::find_if(syntax_.arguments.begin(), syntax_.arguments.end(),
                       [&](const CommandArgument& argument) { return argument.name == name; });
}

void CommandArguments::parse(std::span<const std::string> arguments) {
  cxxopts::Options options("narrowgauge");
  std::vector<std::string> positional;
  for (const CommandArgument& argument : syntax_.arguments) {
    options.add_options()(std::string(argument.name), "", value_of(argument));
    if (!argument.is_option()) {
      positional.emplace_back(argument.name);
    }
  }
  options.parse_positional(positional);
  options.allow_unrecognised_options();
  std::vector<const char*> argv = {"narrowgauge"};
  for (const std::string& argument : arguments) {
    argv.push_back(argument.c_str());
  }
  try {
    parsed_->result = options.parse(static_cast<int>(argv.size()), argv.data());
  } catch (const cxxopts::exceptions::missing_argument&) {
    // Any other option would have taken the next argument, whatever it is.
    throw UsageError("expected a value after " + arguments.back() + ", got nothing");
  } catch (const cxxopts::exceptions::exception& error) {
    throw UsageError(error.what());
  }
  if (!parsed_->result.unmatched().empty()) {
    refuse(parsed_->result.unmatched().front());
  }
}

void CommandArguments::refuse(const std::string& unknown) const {
  if (!unknown.starts_with("-")) {
    throw UsageError("unexpected argument " + in_quotes(unknown));
  }
  const std::string name = unknown.substr(std::min(unknown.find_first_not_of('-'), unknown.size()));
  const std::string bare = name.substr(0, name.find('='));
  if (bare.find('.') != std::string::npos) {
    throw UsageError("unknown option --" + bare + "; a key of the configuration is written " +
                     bare + "=VALUE");
  }
  std::vector<std::string_view> names;
  for (const CommandArgument& argument : syntax_.arguments) {
    if (argument.is_option()) {
      names.push_back(argument.name);
    }
  }
  const auto near = nearest_name(bare, names);
  throw UsageError("unknown option " + unknown +
                   (near ? "; did you mean --" + std::string(*near) + "?" : ""));
}

void CommandArguments::require_all() const {
  for (const CommandArgument& argument : syntax_.arguments) {
    if (!argument.is_required) {
      continue;
    }
    const std::string name(argument.name);
    if (argument.is_list() ? list(name).empty() : text(name).empty()) {
      throw UsageError("expected " + (argument.is_option() ? "--" + name + " " : "") +
                       std::string(argument.value) + ": " + std::string(argument.doc));
    }
  }
}

}  // namespace narrowgauge::trainer

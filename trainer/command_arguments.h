#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/command_syntax.h"
#include "trainer/usage_error.h"

namespace narrowgauge::trainer {

// The arguments of one call of a subcommand, by the names of its syntax. Values stay text until one
// strict reading of numbers, the configuration's, has looked at them. Everything throws UsageError.
class CommandArguments {
 public:
  static constexpr double kUnbounded = 1e300;

  // `arguments` are those after the subcommand. Throws for unknown ones, with the nearest name, and
  // when one that is required is missing.
  CommandArguments(std::string_view command, std::span<const std::string> arguments);
  ~CommandArguments();
  CommandArguments(const CommandArguments&) = delete;
  CommandArguments& operator=(const CommandArguments&) = delete;

  bool given(const std::string& name) const;
  bool flag(const std::string& name) const;

  // As given, else the default.
  std::string text(const std::string& name) const;
  // Of a list: what was given, else the default alone. Of another option: its text, separated at
  // commas.
  std::vector<std::string> list(const std::string& name) const;
  int64_t integer(const std::string& name, int64_t min) const;
  double number(const std::string& name, double max, bool zero_allowed) const;
  double fraction(const std::string& name) const;  // in [0, 1)
  std::string choice(const std::string& name, const std::vector<std::string_view>& choices) const;

  // "--name: expected EXPECTED, got VALUE REMEDY"
  UsageError mismatch(const std::string& name, const std::string& expected,
                      const std::string& remedy = "") const;

 private:
  struct Parsed;

  const CommandArgument& argument(std::string_view name) const;
  void parse(std::span<const std::string> arguments);
  [[noreturn]] void refuse(const std::string& unknown) const;
  void require_all() const;

  const CommandSyntax& syntax_;
  std::unique_ptr<Parsed> parsed_;
};

}  // namespace narrowgauge::trainer

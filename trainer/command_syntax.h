#pragma once

#include <string_view>
#include <vector>

namespace narrowgauge::trainer {

// What each subcommand takes: one table, from which come the parsing and --help.

// One --option or positional argument.
struct CommandArgument {
  std::string_view name;   // long name
  std::string_view value;  // shown in help; empty: a flag
  std::string_view doc;
  std::string_view fallback = "";
  enum Kind {
    kOption,
    kRepeatedOption,  // may be given more than once
    kPositional,
    kPositionalList,
  } kind = kOption;
  bool is_required = false;

  bool is_option() const { return kind == kOption || kind == kRepeatedOption; }
  bool is_list() const { return kind == kRepeatedOption || kind == kPositionalList; }
};

struct CommandSyntax {
  std::string_view summary;
  std::string_view usage;
  std::vector<CommandArgument> arguments;
  std::string_view examples;
  std::string_view notes = "";  // lines below the arguments
};

// Of "train", "tokenizer encode" and so on. Throws std::logic_error for another name.
const CommandSyntax& command_syntax(std::string_view command);

}  // namespace narrowgauge::trainer

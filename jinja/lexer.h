#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace narrowgauge::jinja {

struct Token {
  enum class Kind {
    kText,
    kOutputBegin,
    kOutputEnd,
    kBlockBegin,
    kBlockEnd,
    kName,
    kString,
    kInteger,
    kFloat,
    kOperator,
    kEnd
  };
  Kind kind = Kind::kEnd;
  std::string text;  // of a string its value, escapes resolved
  int line = 1;

  bool is_operator(std::string_view op) const { return kind == Kind::kOperator && text == op; }
  bool is_name(std::string_view name) const { return kind == Kind::kName && text == name; }
};

// The tokens of a template, kEnd the last, with the white space that Jinja leaves where trim_blocks
// and lstrip_blocks are set, as transformers sets them: none before a block alone on its line, no
// newline behind a block; "-" strips all on its side, "+" nothing. Throws std::runtime_error that
// begins with `name`:line.
std::vector<Token> tokenize(std::string_view source, const std::string& name);

}  // namespace narrowgauge::jinja

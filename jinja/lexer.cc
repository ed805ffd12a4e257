// After Jinja 3.1's lexer.py: where "lstrip" and "trim" apply is what its regular expressions say.
#include "jinja/lexer.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <utility>

namespace narrowgauge::jinja {
namespace {

constexpr std::string_view kSpace = " \t\n\r\f\v";
// Longer ones first.
constexpr std::array<std::string_view, 28> kOperators = {
    "==", "!=", "<=", ">=", "//", "**", "(", ")", "[", "]", "{", "}", ",", ":",
    ".",  "|",  "+",  "-",  "*",  "/",  "%", "~", "<", ">", "=", ";", "!", "&"};

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool begins_name(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

class Lexer {
 public:
  Lexer(std::string source, const std::string& name) : source_(std::move(source)), name_(name) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) read_text_and_tag();
    add(Token::Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(name_ + ":" + std::to_string(line_) + ": " + what);
  }

  void add(Token::Kind kind, std::string text) {
    tokens_.push_back({kind, std::move(text), line_});
  }

  void advance(size_t size) {
    line_ +=
        static_cast<int>(std::count(source_.begin() + at_, source_.begin() + at_ + size, '\n'));
    at_ += size;
  }

  bool is_here(std::string_view text) const {
    return std::string_view(source_).substr(at_, text.size()) == text;
  }

  char peek() const { return at_ < source_.size() ? source_[at_] : '\0'; }

  size_t find_tag() const {
    size_t tag = source_.find('{', at_);
    while (tag != std::string::npos &&
           (tag + 1 == source_.size() ||
            std::string_view("{%#").find(source_[tag + 1]) == std::string_view::npos)) {
      tag = source_.find('{', tag + 1);
    }
    return std::min(tag, source_.size());
  }

  void read_text_and_tag() {
    const size_t tag = find_tag();
    std::string text = source_.substr(at_, tag - at_);
    const char kind = tag + 1 < source_.size() ? source_[tag + 1] : '\0';
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    if (kind != '\0' && sign == '-') {
      text.erase(text.find_last_not_of(kSpace) + 1);
    } else if ((kind == '%' || kind == '#') && sign != '+') {
      strip_indentation(text);
    }
    if (!text.empty()) add(Token::Kind::kText, std::move(text));
    advance(tag - at_);
    if (kind == '\0') return;
    advance(kind != '#' && (sign == '-' || sign == '+') ? 3 : 2);
    if (kind == '#') {
      read_comment();
    } else {
      read_tag(kind == '{');
    }
  }

  void strip_indentation(std::string& text) const {
    const size_t line = text.rfind('\n') + 1;  // 0 where there is none
    if ((line > 0 || starts_line_) && text.find_first_not_of(kSpace, line) == std::string::npos) {
      text.erase(line);
    }
  }

  // What follows a tag: `sign` stood before its end.
  void end_tag(char sign, bool is_output) {
    const size_t begin = at_;
    if (sign == '-') {
      const size_t next = source_.find_first_not_of(kSpace, at_);
      advance(std::min(next, source_.size()) - at_);
    } else if (!is_output && sign != '+' && peek() == '\n') {
      advance(1);
    }
    starts_line_ = at_ > begin && source_[at_ - 1] == '\n';
  }

  void read_comment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos) fail("expected '#}' behind '{#'");
    const char sign = end > at_ ? source_[end - 1] : '\0';
    advance(end + 2 - at_);
    end_tag(sign, /*is_output=*/false);
  }

  void read_tag(bool is_output) {
    add(is_output ? Token::Kind::kOutputBegin : Token::Kind::kBlockBegin, "");
    const std::string end = is_output ? "}}" : "%}";
    int depth = 0;
    while (true) {
      advance(std::min(source_.find_first_not_of(kSpace, at_), source_.size()) - at_);
      if (at_ == source_.size()) fail("expected '" + end + "', got the end of the template");
      const char sign = peek() == '-' || peek() == '+' ? peek() : '\0';
      const bool is_signed = sign != '\0' && source_.compare(at_ + 1, 2, end) == 0;
      if (depth == 0 && (is_here(end) || is_signed)) {
        add(is_output ? Token::Kind::kOutputEnd : Token::Kind::kBlockEnd, "");
        advance(is_signed ? 3 : 2);
        end_tag(is_signed ? sign : '\0', is_output);
        return;
      }
      depth += read_token();
    }
  }

  // Returns what the token adds to the depth of braces.
  int read_token() {
    const char c = peek();
    if (c == '\'' || c == '"') return read_string(c), 0;
    size_t end = at_;
    if (begins_name(c)) {
      while (end < source_.size() && (begins_name(source_[end]) || is_digit(source_[end]))) ++end;
      add(Token::Kind::kName, source_.substr(at_, end - at_));
    } else if (is_digit(c)) {
      const auto skip_digits = [&] {
        while (end < source_.size() && is_digit(source_[end])) ++end;
      };
      skip_digits();
      const bool is_float =
          end + 1 < source_.size() && source_[end] == '.' && is_digit(source_[end + 1]);
      if (is_float) {
        ++end;
        skip_digits();
      }
      add(is_float ? Token::Kind::kFloat : Token::Kind::kInteger, source_.substr(at_, end - at_));
    } else {
      const auto* const op = std::find_if(kOperators.begin(), kOperators.end(),
                                          [this](std::string_view text) { return is_here(text); });
      if (op == kOperators.end()) fail(std::string("unexpected character '") + c + "'");
      add(Token::Kind::kOperator, std::string(*op));
      end = at_ + op->size();
    }
    advance(end - at_);
    const Token& token = tokens_.back();
    return token.is_operator("{") ? 1 : token.is_operator("}") ? -1 : 0;
  }

  void read_string(char quote) {
    std::string value;
    size_t end = at_ + 1;
    for (; end < source_.size() && source_[end] != quote; ++end) {
      if (source_[end] != '\\') {
        value += source_[end];
        continue;
      }
      if (++end == source_.size()) break;
      constexpr std::string_view kNames = "ntr\\'\"";
      constexpr std::string_view kValues = "\n\t\r\\'\"";
      const size_t escape = kNames.find(source_[end]);
      if (escape == std::string_view::npos) {
        fail(std::string("the escape '\\") + source_[end] + "' is not supported in a string");
      }
      value += kValues[escape];
    }
    if (end >= source_.size()) fail("expected the end of a string");
    add(Token::Kind::kString, std::move(value));
    advance(end + 1 - at_);
  }

  std::string source_;
  const std::string& name_;
  size_t at_ = 0;
  int line_ = 1;
  bool starts_line_ = true;
  std::vector<Token> tokens_;
};

// Jinja reads every kind of newline as one, and drops the last.
std::string normalize_newlines(std::string_view source) {
  std::string text;
  text.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      text += '\n';
      i += i + 1 < source.size() && source[i + 1] == '\n' ? 1 : 0;
    } else {
      text += source[i];
    }
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

}  // namespace

std::vector<Token> tokenize(std::string_view source, const std::string& name) {
  return Lexer(normalize_newlines(source), name).run();
}

}  // namespace narrowgauge::jinja

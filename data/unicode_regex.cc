#include "data/unicode_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <stdexcept>

namespace narrowgauge::data {
namespace {

// Contents of character classes. PCRE2's own \s has U+180E, which Unicode took out of White_Space
// in version 6.3, and its \w lacks marks; Oniguruma's \w has the superscript digits and fractions
// of Latin-1 beside Alphabetic, Mark, Decimal_Number and Connector_Punctuation.
constexpr std::string_view kSpace =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view kNotSpace =
    R"(\x{0}-\x{8}\x{e}-\x{1f}\x{21}-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff})"
    R"(\x{200b}-\x{2027}\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";
constexpr std::string_view kWord =
    R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{b2}\x{b3}\x{b9}\x{bc}-\x{be}\x{24b6}-\x{24e9})"
    R"(\x{1f130}-\x{1f149}\x{1f150}-\x{1f169}\x{1f170}-\x{1f189})";

// Letters, marks and numbers of Unicode 15 and 16, which the references' tables (16) have and
// PCRE2 10.42's (14) lack. Other categories (\p{Lu}, \p{P}, ...) are PCRE2's own.
constexpr std::string_view kNewLetters =
    R"(\x{1c89}-\x{1c8a}\x{a7cb}-\x{a7cd}\x{a7da}-\x{a7dc}\x{105c0}-\x{105f3})"
    R"(\x{10d4a}-\x{10d65}\x{10d6f}-\x{10d85}\x{10ec2}-\x{10ec4}\x{1123f}-\x{11240})"
    R"(\x{11380}-\x{11389}\x{1138b}\x{1138e}\x{11390}-\x{113b5}\x{113b7}\x{113d1}\x{113d3})"
    R"(\x{11bc0}-\x{11be0}\x{11f02}\x{11f04}-\x{11f10}\x{11f12}-\x{11f33}\x{1342f})"
    R"(\x{13441}-\x{13446}\x{13460}-\x{143fa}\x{16100}-\x{1611d}\x{16d40}-\x{16d6c}\x{18cff})"
    R"(\x{1b132}\x{1b155}\x{1df25}-\x{1df2a}\x{1e030}-\x{1e06d}\x{1e4d0}-\x{1e4eb})"
    R"(\x{1e5d0}-\x{1e5ed}\x{1e5f0}\x{2b739}\x{2ebf0}-\x{2ee5d}\x{31350}-\x{323af})";
constexpr std::string_view kNewMarks =
    R"(\x{897}\x{cf3}\x{ece}\x{10d69}-\x{10d6d}\x{10efc}-\x{10eff}\x{11241}\x{113b8}-\x{113c0})"
    R"(\x{113c2}\x{113c5}\x{113c7}-\x{113ca}\x{113cc}-\x{113d0}\x{113d2}\x{113e1}-\x{113e2})"
    R"(\x{11f00}-\x{11f01}\x{11f03}\x{11f34}-\x{11f3a}\x{11f3e}-\x{11f42}\x{11f5a}\x{13440})"
    R"(\x{13447}-\x{13455}\x{1611e}-\x{1612f}\x{1e08f}\x{1e4ec}-\x{1e4ef}\x{1e5ee}-\x{1e5ef})";
constexpr std::string_view kNewDecimals =
    R"(\x{10d40}-\x{10d49}\x{116d0}-\x{116e3}\x{11bf0}-\x{11bf9}\x{11f50}-\x{11f59})"
    R"(\x{16130}-\x{16139}\x{16d70}-\x{16d79}\x{1ccf0}-\x{1ccf9})"
    R"(\x{1e4f0}-\x{1e4f9}\x{1e5f1}-\x{1e5fa})";
constexpr std::string_view kOtherNewNumbers = R"(\x{1d2c0}-\x{1d2d3})";

class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  std::string run() {
    while (position_ < pattern_.size()) {
      const char c = pattern_[position_];
      if (c == '\\') {
        translate_escape();
      } else if (in_class_) {
        translate_in_class(c);
      } else {
        translate_outside(c);
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw std::invalid_argument("expected a supported regular expression, got " + what +
                                " at offset " + std::to_string(position_) + " of '" +
                                std::string(pattern_) + "'");
  }

  bool at(std::string_view text) const { return pattern_.substr(position_).starts_with(text); }

  void copy(size_t count) {
    out_ += pattern_.substr(position_, count);
    position_ += count;
  }

  void replace_escape(std::string_view members, bool negated) {
    out_ += in_class_ ? "" : negated ? "[^" : "[";
    out_ += members;
    out_ += in_class_ ? "" : "]";
    position_ += 2;
  }

  void translate_escape() {
    if (position_ + 1 >= pattern_.size()) {
      refuse("a backslash at the end");
    }
    switch (pattern_[position_ + 1]) {
      case 's':
        return replace_escape(kSpace, false);
      case 'S':
        return replace_escape(kNotSpace, false);
      case 'w':
        return replace_escape(word_members(), false);
      case 'W':
        return in_class_ ? refuse("\\W inside a class") : replace_escape(word_members(), true);
      case 'p':
      case 'P':
      case 'x':
        return translate_braced_escape();
      case 'u':
        return translate_code_point();
      // Hexadecimal digits in Ruby, horizontal space in PCRE2; the boundaries depend on \w.
      case 'h':
      case 'H':
      case 'b':
      case 'B':
        refuse(std::string("\\") + pattern_[position_ + 1]);
      default:
        copy(2);
    }
  }

  // \p{Name}, \x{1f}: the braces belong to the escape.
  void translate_braced_escape() {
    if (position_ + 2 >= pattern_.size() || pattern_[position_ + 2] != '{') {
      return copy(2);
    }
    const size_t close = pattern_.find('}', position_);
    if (close == std::string_view::npos) {
      refuse("an unclosed brace");
    }
    const std::string newer = new_members(pattern_.substr(position_, close + 1 - position_));
    // A class cannot take "not one of these" among its members, so there PCRE2's table decides.
    const bool negated = pattern_[position_ + 1] == 'P';
    if (newer.empty() || (negated && in_class_)) {
      return copy(close + 1 - position_);
    }
    out_ += in_class_ ? "" : negated ? "[^" : "[";
    out_ += "\\p" + std::string(pattern_.substr(position_ + 2, close - position_ - 1));
    out_ += newer;
    out_ += in_class_ ? "" : "]";
    position_ = close + 1;
  }

  static std::string new_members(std::string_view escape) {
    const std::string_view category = escape.substr(2);
    if (category == "{L}") {
      return std::string(kNewLetters);
    }
    if (category == "{M}") {
      return std::string(kNewMarks);
    }
    return category == "{N}" ? std::string(kNewDecimals).append(kOtherNewNumbers) : "";
  }

  static std::string word_members() {
    return std::string(kWord).append(kNewLetters).append(kNewMarks).append(kNewDecimals);
  }

  void translate_code_point() {
    const std::string_view digits = pattern_.substr(position_ + 2, 4);
    if (digits.size() != 4 ||
        digits.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos) {
      refuse("\\u without four hexadecimal digits");
    }
    out_ += "\\x{" + std::string(digits) + "}";
    position_ += 6;
  }

  void translate_in_class(char c) {
    if (at("[:")) {
      const size_t close = pattern_.find(":]", position_);
      if (close == std::string_view::npos) {
        refuse("an unclosed [:name:]");
      }
      return copy(close + 2 - position_);
    }
    if (c == '[') {
      refuse("a class inside a class");
    }
    if (at("&&")) {
      refuse("an intersection of classes");
    }
    in_class_ = c != ']';
    copy(1);
  }

  void translate_outside(char c) {
    if (c == '[') {
      in_class_ = true;
      copy(at("[^") ? 2 : 1);
      if (at("]")) {
        refuse("an empty class");
      }
      return;
    }
    // Ruby repeats the whole interval where PCRE2 would make it possessive.
    if (at("}+")) {
      refuse("'+' after an interval");
    }
    if (at("(*")) {
      refuse("'(*'");
    }
    if (at("(?")) {
      refuse_multiline_flag();
    }
    copy(1);
  }

  // In Ruby m lets '.' match a newline; in PCRE2 it changes ^ and $.
  void refuse_multiline_flag() const {
    const size_t end = pattern_.find_first_not_of("imsx-", position_ + 2);
    if (pattern_.substr(position_ + 2, end - position_ - 2).find('m') != std::string_view::npos) {
      refuse("the flag m");
    }
  }

  std::string_view pattern_;
  size_t position_ = 0;
  bool in_class_ = false;
  std::string out_;
};

std::string error_text(int error) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(error, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

// Patterns that backtrack through groups need room; plain repeats do not touch it.
constexpr size_t kJitStackStart = 32 * 1024;
constexpr size_t kJitStackLimit = 16 * 1024 * 1024;

}  // namespace

struct RegexScratch::State {
  pcre2_match_data* match_data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(kJitStackStart, kJitStackLimit, nullptr);

  State() {
    if (match_data == nullptr || context == nullptr) {
      throw std::bad_alloc();
    }
    // A run of a million spaces is text, not an attack: patterns are trusted to be linear enough.
    pcre2_set_match_limit(context, UINT32_MAX);
    pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~State() {
    pcre2_match_data_free(match_data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
};

RegexScratch::RegexScratch() : state_(std::make_unique<State>()) {}
RegexScratch::~RegexScratch() = default;

struct UnicodeRegex::Code {
  pcre2_code* code = nullptr;
  bool jit = false;
  ~Code() { pcre2_code_free(code); }
};

UnicodeRegex::UnicodeRegex(std::string_view pattern) : code_(std::make_unique<Code>()) {
  const std::string translated = translate_regex(pattern);
  int error = 0;
  PCRE2_SIZE offset = 0;
  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  // Ruby's ^ and $ always mean lines.
  code_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                              &error, &offset, context.get());
  if (code_->code == nullptr) {
    throw std::invalid_argument("expected a regular expression, got '" + std::string(pattern) +
                                "': " + error_text(error) + " at offset " + std::to_string(offset) +
                                " of '" + translated + "'");
  }
  code_->jit = pcre2_jit_compile(code_->code, PCRE2_JIT_COMPLETE) == 0;
}

UnicodeRegex::~UnicodeRegex() = default;
UnicodeRegex::UnicodeRegex(UnicodeRegex&&) noexcept = default;
UnicodeRegex& UnicodeRegex::operator=(UnicodeRegex&&) noexcept = default;

UnicodeRegex UnicodeRegex::for_literal(std::string_view literal) {
  constexpr std::string_view kSyntax = R"(\^$.[]|()?*+{}-#&)";
  std::string pattern;
  for (const char c : literal) {
    if (kSyntax.find(c) != std::string_view::npos) {
      pattern += '\\';
    }
    pattern += c;
  }
  return UnicodeRegex(pattern);
}

bool UnicodeRegex::find(std::string_view text, size_t offset, RegexScratch& scratch,
                        RegexMatch& match) const {
  RegexScratch::State& state = *scratch.state_;
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const int result = code_->jit
                         ? pcre2_jit_match(code_->code, subject, text.size(), offset,
                                           PCRE2_NO_UTF_CHECK, state.match_data, state.context)
                         : pcre2_match(code_->code, subject, text.size(), offset,
                                       PCRE2_NO_UTF_CHECK, state.match_data, state.context);
  if (result == PCRE2_ERROR_NOMATCH) {
    return false;
  }
  if (result < 0) {
    throw std::runtime_error("expected the tokenizer's regular expression to finish, got '" +
                             error_text(result) + "' at byte " + std::to_string(offset) +
                             " of a text of " + std::to_string(text.size()) + " bytes");
  }
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(state.match_data);
  match = {ends[0], ends[1]};
  return true;
}

std::string translate_regex(std::string_view pattern) { return Translator(pattern).run(); }

}  // namespace narrowgauge::data

#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace narrowgauge::data {

// What a match needs to write to: one per thread, shared by all patterns of a tokenizer.
class RegexScratch {
 public:
  RegexScratch();
  ~RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;

 private:
  friend class UnicodeRegex;
  struct State;
  std::unique_ptr<State> state_;
};

struct RegexMatch {
  size_t begin;
  size_t end;
};

// A compiled pattern over UTF-8 text, with the meaning that Hugging Face tokenizers gives it
// (Oniguruma, Ruby syntax, Unicode classes), run by PCRE2's JIT. What PCRE2 reads differently is
// translated, or refused where it cannot be. Immutable, so threads may share it.
class UnicodeRegex {
 public:
  // Throws std::invalid_argument with the pattern, the place and the reason.
  explicit UnicodeRegex(std::string_view pattern);
  // Matches `literal` itself.
  static UnicodeRegex for_literal(std::string_view literal);

  ~UnicodeRegex();
  UnicodeRegex(UnicodeRegex&&) noexcept;
  UnicodeRegex& operator=(UnicodeRegex&&) noexcept;

  // The leftmost match that starts at `offset` or later; false when there is none. REQUIRES: text
  // is well-formed UTF-8, offset is a character's start or text.size().
  bool find(std::string_view text, size_t offset, RegexScratch& scratch, RegexMatch& match) const;

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

// The pattern as PCRE2 takes it; exposed for tests. Throws as the constructor does.
std::string translate_regex(std::string_view pattern);

}  // namespace narrowgauge::data

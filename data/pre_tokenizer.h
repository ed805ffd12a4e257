#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/unicode_regex.h"

namespace narrowgauge::data {

// The patterns that byte-level tokenizers are trained with.
// GPT-2: github.com/openai/gpt-2, src/encoder.py.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
// Llama 3: digits in groups of three, a newline ends a word.
inline constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// What becomes of the text that a pattern matches, as Hugging Face tokenizers names it.
enum class SplitBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

// Cuts text into the pieces that the BPE model encodes one by one. Stages run in order, each on the
// pieces of the one before. Immutable once built; threads may share it.
class PreTokenizer {
 public:
  using PieceSink = std::function<void(std::string_view)>;

  // `invert` swaps what matches and what lies between.
  void add_split(UnicodeRegex pattern, SplitBehavior behavior, bool invert);
  // A space before each piece that does not begin with one.
  void add_prefix_space();

  // Calls sink with each piece, in order; none is empty. A piece lives until sink returns.
  // REQUIRES: text is well-formed UTF-8.
  void for_each_piece(std::string_view text, RegexScratch& scratch, const PieceSink& sink) const;

 private:
  struct Stage {
    bool prefix_space;
    std::vector<UnicodeRegex> pattern;  // one, or none for the prefix space
    SplitBehavior behavior;
    bool invert;
  };

  void run_stage(size_t stage, std::string_view text, RegexScratch& scratch,
                 const PieceSink& sink) const;
  void split(size_t stage, std::string_view text, RegexScratch& scratch,
             const PieceSink& sink) const;

  std::vector<Stage> stages_;
};

// The pieces of SplitBehavior::kIsolated for one pattern: its matches and what lies between.
// REQUIRES and sink as above.
void for_each_isolated(const UnicodeRegex& pattern, std::string_view text, RegexScratch& scratch,
                       const PreTokenizer::PieceSink& sink);

}  // namespace narrowgauge::data

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace narrowgauge::trainer {

// The ids a model continues: the token that begins a document, where the tokenizer has one, then
// the text.
std::vector<int64_t> encode_prompt(const data::Tokenizer& tokenizer, const std::string& prompt);

// The text of generated tokens behind a prompt, as they arrive. The prompt is decoded along with
// them: what a token means may depend on what stands before it (a leading blank in sentencepiece, a
// character whose bytes are spread over tokens).
class Continuation {
 public:
  Continuation(const data::Tokenizer& tokenizer, const std::vector<int64_t>& prompt);

  void add(int64_t token) { tokens_.push_back(static_cast<int32_t>(token)); }

  // Text not taken yet, without an unfinished character at its end.
  std::string take();
  // The rest, unfinished characters as U+FFFD.
  std::string finish();

 private:
  std::string take_from(const std::string& text);

  const data::Tokenizer& tokenizer_;
  std::vector<int32_t> tokens_;
  size_t num_taken_;  // bytes of the decoded text, the prompt's included
};

}  // namespace narrowgauge::trainer

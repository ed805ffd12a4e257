#include "trainer/continuation.h"

#include <string_view>

#include "data/utf8.h"

namespace narrowgauge::trainer {
namespace {

constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

}  // namespace

std::vector<int64_t> encode_prompt(const data::Tokenizer& tokenizer, const std::string& prompt) {
  std::vector<int64_t> ids;
  if (const auto bos = tokenizer.bos_id()) {
    ids.push_back(*bos);
  }
  for (const int32_t id : tokenizer.encode(prompt)) {
    ids.push_back(id);
  }
  return ids;
}

Continuation::Continuation(const data::Tokenizer& tokenizer, const std::vector<int64_t>& prompt)
    : tokenizer_(tokenizer), tokens_(prompt.begin(), prompt.end()) {
  num_taken_ = data::replace_invalid_utf8(tokenizer_.decode(tokens_)).size();
}

std::string Continuation::take() {
  const std::string text = data::replace_invalid_utf8(tokenizer_.decode(tokens_));
  return text.ends_with(kReplacementCharacter) ? "" : take_from(text);
}

std::string Continuation::finish() {
  return take_from(data::replace_invalid_utf8(tokenizer_.decode(tokens_)));
}

std::string Continuation::take_from(const std::string& text) {
  if (text.size() <= num_taken_) {
    return "";
  }
  const std::string fresh = text.substr(num_taken_);
  num_taken_ = text.size();
  return fresh;
}

}  // namespace narrowgauge::trainer

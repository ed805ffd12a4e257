#include "data/tokenizer_normalizer.h"

#include <memory>
#include <utility>

namespace narrowgauge::data {
namespace {

std::string replace_matches(const UnicodeRegex& pattern, std::string_view content,
                            std::string_view text, RegexScratch& scratch) {
  std::string out;
  size_t covered = 0;
  size_t offset = 0;
  RegexMatch match;
  while (offset <= text.size() && pattern.find(text, offset, scratch, match)) {
    out.append(text.substr(covered, match.begin - covered)).append(content);
    covered = match.end;
    offset = match.end;
    if (match.begin == match.end) {
      offset += match.end < text.size() ? character_length(text.substr(match.end)) : 1;
    }
  }
  return out.append(text.substr(covered));
}

}  // namespace

void TokenizerNormalizer::add_unicode(NormalForm form) {
  steps_.push_back(
      [form](std::string_view text, RegexScratch&) { return normalize_unicode(text, form); });
}

void TokenizerNormalizer::add_prepend(std::string content) {
  steps_.push_back([content = std::move(content)](std::string_view text, RegexScratch&) {
    return (text.empty() ? "" : content) + std::string(text);
  });
}

void TokenizerNormalizer::add_replace(UnicodeRegex pattern, std::string content) {
  // std::function wants to copy what it holds.
  steps_.push_back([pattern = std::make_shared<const UnicodeRegex>(std::move(pattern)),
                    content = std::move(content)](std::string_view text, RegexScratch& scratch) {
    return replace_matches(*pattern, content, text, scratch);
  });
}

std::string TokenizerNormalizer::normalize(std::string_view text, RegexScratch& scratch) const {
  std::string result(text);
  for (const Step& step : steps_) {
    result = step(result, scratch);
  }
  return result;
}

}  // namespace narrowgauge::data

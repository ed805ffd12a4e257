#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/unicode_regex.h"
#include "data/unicode_text.h"

namespace narrowgauge::data {

// Rewrites text before it is cut into pieces; steps run in order. Immutable once built; threads may
// share it.
class TokenizerNormalizer {
 public:
  void add_unicode(NormalForm form);
  // `content` before text that is not empty.
  void add_prepend(std::string content);
  // `content` in place of every match.
  void add_replace(UnicodeRegex pattern, std::string content);

  bool empty() const { return steps_.empty(); }
  std::string normalize(std::string_view text, RegexScratch& scratch) const;

 private:
  using Step = std::function<std::string(std::string_view, RegexScratch&)>;
  std::vector<Step> steps_;
};

}  // namespace narrowgauge::data

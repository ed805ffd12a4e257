#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace narrowgauge::optim {

// What a configuration says about some parameters, in one line:
//   PATTERN [lr_scale=NUMBER] [weight_decay=NUMBER] | PATTERN frozen
// PATTERN is a whole parameter name in which * stands for any characters and ? for one:
//   "embed_tokens.* lr_scale=0.1 weight_decay=0", "layers.0.* frozen"
struct GroupRule {
  std::string pattern;
  double lr_scale = 1.0;
  std::optional<double> weight_decay;  // none: what the parameter would have anyway
  bool frozen = false;                 // not trained
};

// Throws std::invalid_argument, which says what is wrong, unless `text` is as above with numbers
// that are finite and not negative.
GroupRule parse_group_rule(std::string_view text);

bool matches(std::string_view pattern, std::string_view name);

// The first rule that matches, or nullptr.
const GroupRule* find_rule(std::span<const GroupRule> rules, std::string_view name);

}  // namespace narrowgauge::optim

#include "optim/group_rule.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>
#include <stdexcept>

namespace narrowgauge::optim {
namespace {

std::vector<std::string_view> words_of(std::string_view text) {
  std::vector<std::string_view> words;
  for (size_t begin = text.find_first_not_of(' '); begin != std::string_view::npos;) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    words.push_back(text.substr(begin, end - begin));
    begin = text.find_first_not_of(' ', end);
  }
  return words;
}

double parse_number(std::string_view word, std::string_view digits) {
  double value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size() || !std::isfinite(value) ||
      value < 0 || std::signbit(value)) {
    throw std::invalid_argument("expected a number of at least 0 in '" + std::string(word) + "'");
  }
  return value;
}

}  // namespace

GroupRule parse_group_rule(std::string_view text) {
  const std::vector<std::string_view> words = words_of(text);
  if (words.size() < 2) {
    throw std::invalid_argument(
        "expected PATTERN and lr_scale=NUMBER, weight_decay=NUMBER or frozen, got '" +
        std::string(text) + "'");
  }
  GroupRule rule;
  rule.pattern = words[0];
  std::set<std::string_view> seen;
  for (size_t i = 1; i < words.size(); ++i) {
    const std::string_view key = words[i].substr(0, words[i].find('='));
    const bool has_value = key.size() < words[i].size();
    const std::string_view value = has_value ? words[i].substr(key.size() + 1) : "";
    if (!seen.insert(key).second) {
      throw std::invalid_argument("expected '" + std::string(key) + "' once in '" +
                                  std::string(text) + "'");
    }
    if (key == "lr_scale" && has_value) {
      rule.lr_scale = parse_number(words[i], value);
    } else if (key == "weight_decay" && has_value) {
      rule.weight_decay = parse_number(words[i], value);
    } else if (key == "frozen" && !has_value) {
      rule.frozen = true;
    } else {
      throw std::invalid_argument("expected lr_scale=NUMBER, weight_decay=NUMBER or frozen, got '" +
                                  std::string(words[i]) + "'");
    }
  }
  if (rule.frozen && words.size() > 2) {
    throw std::invalid_argument("expected 'frozen' alone behind the pattern in '" +
                                std::string(text) + "'");
  }
  return rule;
}

bool matches(std::string_view pattern, std::string_view name) {
  // After a mismatch the last star takes one character more.
  size_t p = 0;
  size_t n = 0;
  size_t star = std::string_view::npos;
  size_t star_end = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      star_end = n;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n])) {
      ++p;
      ++n;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      n = ++star_end;
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', p) == std::string_view::npos;
}

const GroupRule* find_rule(std::span<const GroupRule> rules, std::string_view name) {
  for (const GroupRule& rule : rules) {
    if (matches(rule.pattern, name)) {
      return &rule;
    }
  }
  return nullptr;
}

}  // namespace narrowgauge::optim

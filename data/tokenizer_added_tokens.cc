#include "data/tokenizer_added_tokens.h"

#include <algorithm>

#include "data/unicode_text.h"

namespace narrowgauge::data {

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens,
                                     const std::vector<std::string>& patterns)
    : tokens_(std::move(tokens)), starts_(256, false) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    if (patterns[i].empty()) {
      continue;
    }
    if (nodes_.empty()) {
      nodes_.emplace_back();
    }
    starts_[static_cast<unsigned char>(patterns[i].front())] = true;
    size_t node = 0;
    for (const char byte : patterns[i]) {
      const auto [child, is_new] =
          nodes_[node].children.emplace(byte, static_cast<int32_t>(nodes_.size()));
      node = static_cast<size_t>(child->second);
      if (is_new) {
        nodes_.emplace_back();
      }
    }
    if (nodes_[node].token < 0) {
      nodes_[node].token = static_cast<int32_t>(i);
    }
  }
}

std::optional<AddedTokenMatcher::Found> AddedTokenMatcher::find(std::string_view text,
                                                                size_t offset) const {
  for (size_t begin = offset; begin < text.size(); ++begin) {
    if (!starts_[static_cast<unsigned char>(text[begin])]) {
      continue;
    }
    Found found{begin, begin, -1};
    const Node* node = &nodes_.front();
    for (size_t end = begin; end < text.size(); ++end) {
      const auto child = node->children.find(text[end]);
      if (child == node->children.end()) {
        break;
      }
      node = &nodes_[static_cast<size_t>(child->second)];
      if (node->token >= 0) {
        found = {begin, end + 1, node->token};
      }
    }
    if (found.token >= 0) {
      return found;
    }
  }
  return std::nullopt;
}

void AddedTokenMatcher::split(std::string_view text,
                              const std::function<void(std::string_view)>& on_text,
                              const std::function<void(int32_t)>& on_token) const {
  size_t covered = 0;
  size_t offset = 0;
  while (!empty()) {
    const std::optional<Found> found = find(text, offset);
    if (!found) {
      break;
    }
    offset = found->end;
    const AddedToken& token = tokens_[static_cast<size_t>(found->token)];
    size_t begin = found->begin;
    size_t end = found->end;
    if (token.single_word &&
        ((begin > 0 && is_word_character(last_character(text.substr(0, begin)))) ||
         (end < text.size() && is_word_character(first_character(text.substr(end)))))) {
      continue;
    }
    if (token.lstrip) {
      // The token before may have taken the white space already.
      begin = std::max(begin - trailing_white_space(text.substr(0, begin)), covered);
    }
    if (token.rstrip) {
      end += leading_white_space(text.substr(end));
    }
    if (covered < begin) {
      on_text(text.substr(covered, begin - covered));
    }
    on_token(token.id);
    covered = end;
  }
  if (covered < text.size()) {
    on_text(text.substr(covered));
  }
}

}  // namespace narrowgauge::data

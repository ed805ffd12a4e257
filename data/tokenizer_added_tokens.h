#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace narrowgauge::data {

// A token that is found in the text before the model runs.
struct AddedToken {
  std::string content;
  int32_t id = -1;
  bool single_word = false;  // not inside a word
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space behind it
  bool normalized = false;   // is sought in the normalized text
  bool special = false;
};

// Finds tokens in text: leftmost, and the longest of those that start there, as Hugging Face
// tokenizers does. Immutable; threads may share it.
class AddedTokenMatcher {
 public:
  AddedTokenMatcher() = default;
  // Seeks `patterns[i]` for `tokens[i]`; empty patterns are never found, and of equal ones the
  // first counts.
  AddedTokenMatcher(std::vector<AddedToken> tokens, const std::vector<std::string>& patterns);

  bool empty() const { return nodes_.empty(); }

  // Calls on_text for the text between tokens (never empty) and on_token for tokens, in order.
  void split(std::string_view text, const std::function<void(std::string_view)>& on_text,
             const std::function<void(int32_t)>& on_token) const;

 private:
  struct Node {
    std::map<char, int32_t> children;
    int32_t token = -1;  // index into tokens_
  };
  struct Found {
    size_t begin;
    size_t end;
    int32_t token;
  };

  std::optional<Found> find(std::string_view text, size_t offset) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;   // a trie; nodes_[0] is its root
  std::vector<bool> starts_;  // by byte: does a token start with it
};

}  // namespace narrowgauge::data

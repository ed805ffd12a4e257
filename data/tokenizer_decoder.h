#pragma once

#include <functional>
#include <string>
#include <vector>

namespace narrowgauge::data {

// Turns the tokens of decoded ids into text, the way of decoders in tokenizer.json. Immutable once
// built; threads may share it.
class TokenDecoder {
 public:
  // Bytes of the byte alphabet; a token with other characters stands for its own.
  void add_byte_level();
  // `content` in place of each `pattern` within each token. REQUIRES: pattern is not empty.
  void add_replace(std::string pattern, std::string content);
  // <0x..> tokens become bytes; a run of them that is not UTF-8 becomes one U+FFFD a token.
  void add_byte_fallback();
  // All tokens become one.
  void add_fuse();
  // Removes up to `start` and `stop` times the ASCII character `content` at a token's ends.
  void add_strip(char content, size_t start, size_t stop);

  // Without any step the tokens are joined by spaces.
  std::string decode(std::vector<std::string> tokens) const;

 private:
  using Step = std::function<void(std::vector<std::string>&)>;
  std::vector<Step> steps_;
};

}  // namespace narrowgauge::data

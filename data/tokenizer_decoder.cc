#include "data/tokenizer_decoder.h"

#include <charconv>
#include <optional>
#include <string_view>
#include <utility>

#include "data/bpe_byte_alphabet.h"
#include "data/utf8.h"

namespace narrowgauge::data {
namespace {

void decode_byte_level(std::vector<std::string>& tokens) {
  std::string bytes;
  for (const std::string& token : tokens) {
    bytes += from_byte_alphabet(token).value_or(token);
  }
  tokens.assign(1, replace_invalid_utf8(bytes));
}

std::string replace_all(std::string_view text, std::string_view pattern, std::string_view content) {
  std::string out;
  size_t covered = 0;
  size_t found;
  while ((found = text.find(pattern, covered)) != std::string_view::npos) {
    out.append(text.substr(covered, found - covered)).append(content);
    covered = found + pattern.size();
  }
  return out.append(text.substr(covered));
}

// The byte of a token like <0x0A>.
std::optional<char> fallback_byte(std::string_view token) {
  unsigned value = 0;
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') {
    return std::nullopt;
  }
  const auto [end, error] = std::from_chars(token.data() + 3, token.data() + 5, value, 16);
  if (error != std::errc() || end != token.data() + 5) {
    return std::nullopt;
  }
  return static_cast<char>(value);
}

void decode_byte_fallback(std::vector<std::string>& tokens) {
  std::vector<std::string> decoded;
  std::string bytes;
  const auto flush = [&] {
    if (bytes.empty()) {
      return;
    }
    if (find_invalid_utf8(bytes) == std::string_view::npos) {
      decoded.push_back(bytes);
    } else {
      decoded.insert(decoded.end(), bytes.size(), "\xEF\xBF\xBD");
    }
    bytes.clear();
  };
  for (std::string& token : tokens) {
    if (const auto byte = fallback_byte(token)) {
      bytes += *byte;
      continue;
    }
    flush();
    decoded.push_back(std::move(token));
  }
  flush();
  tokens = std::move(decoded);
}

std::string join(const std::vector<std::string>& tokens, std::string_view separator) {
  std::string text;
  for (const std::string& token : tokens) {
    text.append(&token == &tokens.front() ? "" : separator).append(token);
  }
  return text;
}

void strip(std::string& token, char content, size_t start, size_t stop) {
  size_t begin = 0;
  while (begin < start && begin < token.size() && token[begin] == content) {
    ++begin;
  }
  size_t end = token.size();
  while (end > begin && token.size() - end < stop && token[end - 1] == content) {
    --end;
  }
  token = token.substr(begin, end - begin);
}

}  // namespace

void TokenDecoder::add_byte_level() { steps_.push_back(decode_byte_level); }

void TokenDecoder::add_replace(std::string pattern, std::string content) {
  steps_.push_back([pattern = std::move(pattern),
                    content = std::move(content)](std::vector<std::string>& tokens) {
    for (std::string& token : tokens) {
      token = replace_all(token, pattern, content);
    }
  });
}

void TokenDecoder::add_byte_fallback() { steps_.push_back(decode_byte_fallback); }

void TokenDecoder::add_fuse() {
  steps_.push_back([](std::vector<std::string>& tokens) { tokens.assign(1, join(tokens, "")); });
}

void TokenDecoder::add_strip(char content, size_t start, size_t stop) {
  steps_.push_back([=](std::vector<std::string>& tokens) {
    for (std::string& token : tokens) {
      strip(token, content, start, stop);
    }
  });
}

std::string TokenDecoder::decode(std::vector<std::string> tokens) const {
  for (const Step& step : steps_) {
    step(tokens);
  }
  return join(tokens, steps_.empty() ? " " : "");
}

}  // namespace narrowgauge::data

#include "data/utf8.h"

#include <cstdint>
#include <cstring>

namespace narrowgauge::data {
namespace {

bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

struct Sequence {
  size_t size = 1;  // bytes of the sequence or, ill-formed, of its longest well-formed beginning
  bool is_valid = false;
};

// The sequence that begins at text[0]. REQUIRES: text is not empty.
Sequence first_sequence(std::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {1, true};
  if (lead < 0xC2 || lead > 0xF4) return {1, false};
  const size_t expected = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  // The second byte is restricted where the lead alone would admit overlong forms, surrogates or
  // values above U+10FFFF.
  const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (text.size() < 2 || byte(1) < low || byte(1) > high) return {1, false};
  for (size_t i = 2; i < expected; ++i) {
    if (i >= text.size() || !is_continuation(text[i])) return {i, false};
  }
  return {expected, true};
}

// Length of the ASCII text at the beginning, eight bytes at a time, rounded down to eight.
size_t skip_ascii(std::string_view text) {
  size_t at = 0;
  uint64_t word = 0;
  while (at + sizeof word <= text.size()) {
    std::memcpy(&word, text.data() + at, sizeof word);
    if ((word & 0x8080808080808080u) != 0) break;
    at += sizeof word;
  }
  return at;
}

}  // namespace

size_t find_invalid_utf8(std::string_view text) {
  size_t at = 0;
  while (true) {
    at += skip_ascii(text.substr(at));
    if (at >= text.size()) return std::string_view::npos;
    const Sequence sequence = first_sequence(text.substr(at));
    if (!sequence.is_valid) return at;
    at += sequence.size;
  }
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  while (true) {
    const size_t bad = find_invalid_utf8(text);
    result.append(text.substr(0, bad));
    if (bad == std::string_view::npos) return result;
    result.append("\xEF\xBF\xBD");
    text.remove_prefix(bad);
    text.remove_prefix(first_sequence(text).size);
  }
}

size_t utf8_boundary(std::string_view text, size_t limit) {
  if (limit >= text.size()) return text.size();
  size_t at = limit;
  while (at > 0 && limit - at < 3 && is_continuation(text[at])) --at;
  // Four continuation bytes in a row are ill-formed anyway: any cut serves.
  return is_continuation(text[at]) ? limit : at;
}

}  // namespace narrowgauge::data

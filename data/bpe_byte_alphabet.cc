#include "data/bpe_byte_alphabet.h"

#include "data/unicode_text.h"

namespace narrowgauge::data {
namespace {

bool stands_for_itself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr char32_t kFirstSubstitute = 0x100;
constexpr char32_t kEnd = 0x100 + 68;

std::array<AlphabetEntry, 256> make_alphabet() {
  std::array<AlphabetEntry, 256> alphabet{};
  size_t count = 0;
  for (const bool own : {true, false}) {
    char32_t substitute = kFirstSubstitute;
    for (int byte = 0; byte < 256; ++byte) {
      if (stands_for_itself(byte) == own) {
        alphabet[count++] = {own ? static_cast<char32_t>(byte) : substitute++,
                             static_cast<unsigned char>(byte)};
      }
    }
  }
  return alphabet;
}

std::array<char32_t, 256> make_characters() {
  std::array<char32_t, 256> characters{};
  for (const AlphabetEntry& entry : byte_alphabet()) {
    characters[entry.byte] = entry.character;
  }
  return characters;
}

// Index: a code point below kEnd; -1: not in the alphabet.
std::array<int, kEnd> make_bytes() {
  std::array<int, kEnd> bytes{};
  bytes.fill(-1);
  for (const AlphabetEntry& entry : byte_alphabet()) {
    bytes[entry.character] = entry.byte;
  }
  return bytes;
}

}  // namespace

const std::array<AlphabetEntry, 256>& byte_alphabet() {
  static const std::array<AlphabetEntry, 256> alphabet = make_alphabet();
  return alphabet;
}

std::string to_byte_alphabet(std::string_view bytes) {
  static const std::array<char32_t, 256> characters = make_characters();
  std::string token;
  token.reserve(bytes.size() * 2);
  for (const char byte : bytes) {
    const char32_t character = characters[static_cast<unsigned char>(byte)];
    if (character < 0x80) {
      token += static_cast<char>(character);
    } else {
      token += static_cast<char>(0xC0 | character >> 6);
      token += static_cast<char>(0x80 | (character & 0x3F));
    }
  }
  return token;
}

std::optional<std::string> from_byte_alphabet(std::string_view token) {
  static const std::array<int, kEnd> bytes = make_bytes();
  std::string result;
  result.reserve(token.size());
  while (!token.empty()) {
    const char32_t character = first_character(token);
    if (character >= kEnd || bytes[character] < 0) {
      return std::nullopt;
    }
    result += static_cast<char>(bytes[character]);
    token.remove_prefix(character_length(token));
  }
  return result;
}

}  // namespace narrowgauge::data

#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace narrowgauge::data {

// Byte-level vocabularies write a token's bytes as printable characters, one a byte: printable
// Latin-1 stands for itself, the other 68 bytes for U+0100, U+0101, ... in order (GPT-2,
// src/encoder.py, bytes_to_unicode). A space becomes U+0120.

// The characters in the order of their code points, which is the order in which trained
// vocabularies number them, with the byte of each.
struct AlphabetEntry {
  char32_t character;
  unsigned char byte;
};
const std::array<AlphabetEntry, 256>& byte_alphabet();

// Bytes as characters of the alphabet, in UTF-8.
std::string to_byte_alphabet(std::string_view bytes);

// The bytes that `token` stands for; nothing when a character of it is not in the alphabet.
// REQUIRES: token is well-formed UTF-8.
std::optional<std::string> from_byte_alphabet(std::string_view token);

}  // namespace narrowgauge::data

#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace narrowgauge::data {

// Characters and normal forms of well-formed UTF-8 (data/utf8.h checks that it is well-formed).

// Throws std::invalid_argument with the offset and the byte unless text is well-formed.
void require_utf8(std::string_view text);

bool is_ascii(std::string_view text);

// Bytes of the character that begins at text[0]. REQUIRES: text is well-formed and not empty.
size_t character_length(std::string_view text);

// REQUIRES of the four: text is well-formed; of the first two also: not empty.
char32_t first_character(std::string_view text);
char32_t last_character(std::string_view text);
// Bytes of white space at the start and at the end.
size_t leading_white_space(std::string_view text);
size_t trailing_white_space(std::string_view text);

// White_Space, and the regular expression class \w of Unicode (Alphabetic, Mark, Decimal_Number,
// Connector_Punctuation, Join_Control).
bool is_white_space(char32_t character);
bool is_word_character(char32_t character);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };
std::string normalize_unicode(std::string_view text, NormalForm form);

}  // namespace narrowgauge::data

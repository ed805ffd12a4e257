#include "data/unicode_text.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>

#include "data/utf8.h"

namespace narrowgauge::data {
namespace {

size_t character_start_before(std::string_view text, size_t end) {
  do {
    --end;
  } while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80);
  return end;
}

}  // namespace

void require_utf8(std::string_view text) {
  const size_t offset = find_invalid_utf8(text);
  if (offset != std::string_view::npos) {
    char byte[8];
    std::snprintf(byte, sizeof(byte), "0x%02X", static_cast<unsigned char>(text[offset]));
    throw std::invalid_argument("expected UTF-8 text, got byte " + std::string(byte) +
                                " at offset " + std::to_string(offset) + " of " +
                                std::to_string(text.size()) +
                                "; convert the text or replace its invalid bytes");
  }
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char byte) { return static_cast<unsigned char>(byte) < 0x80; });
}

size_t character_length(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text.front());
  return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

char32_t first_character(std::string_view text) {
  const size_t length = character_length(text);
  // The lead's payload: 7 bits alone, else what is left of the run of ones and its zero.
  char32_t character =
      static_cast<unsigned char>(text.front()) & (length == 1 ? 0x7F : 0x7F >> length);
  for (size_t i = 1; i < length; ++i) {
    character = character << 6 | (static_cast<unsigned char>(text[i]) & 0x3F);
  }
  return character;
}

char32_t last_character(std::string_view text) {
  return first_character(text.substr(character_start_before(text, text.size())));
}

bool is_white_space(char32_t c) {
  return (c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_word_character(char32_t c) {
  // Alphabetic beyond letters, marks and letter numbers: the circled and squared Latin letters.
  const bool other_alphabetic = (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
                                (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
  const bool join_control = c == 0x200C || c == 0x200D;
  if (other_alphabetic || join_control) {
    return true;
  }
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

size_t leading_white_space(std::string_view text) {
  size_t position = 0;
  while (position < text.size() && is_white_space(first_character(text.substr(position)))) {
    position += character_length(text.substr(position));
  }
  return position;
}

size_t trailing_white_space(std::string_view text) {
  size_t end = text.size();
  while (end > 0 && is_white_space(last_character(text.substr(0, end)))) {
    end = character_start_before(text, end);
  }
  return text.size() - end;
}

std::string normalize_unicode(std::string_view text, NormalForm form) {
  // ASCII is its own normal form, in all four.
  if (is_ascii(text)) {
    return std::string(text);
  }
  int options = UTF8PROC_STABLE;
  options |=
      form == NormalForm::kNfc || form == NormalForm::kNfkc ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == NormalForm::kNfkc || form == NormalForm::kNfkd) {
    options |= UTF8PROC_COMPAT;
  }
  utf8proc_uint8_t* result = nullptr;
  const auto length = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                   static_cast<utf8proc_ssize_t>(text.size()), &result,
                                   static_cast<utf8proc_option_t>(options));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(result, &std::free);
  if (length < 0) {
    throw std::runtime_error(std::string("expected text that normalizes, got utf8proc error: ") +
                             utf8proc_errmsg(length));
  }
  return {reinterpret_cast<const char*>(result), static_cast<size_t>(length)};
}

}  // namespace narrowgauge::data

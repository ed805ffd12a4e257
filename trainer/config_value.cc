#include "trainer/config_value.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>

namespace narrowgauge::trainer {
namespace {

constexpr std::string_view kDigits = "0123456789";

// Takes the digits at the front of `text`; false if there is none.
bool skip_digits(std::string_view& text) {
  const size_t length = std::min(text.find_first_not_of(kDigits), text.size());
  text.remove_prefix(length);
  return length > 0;
}

bool skip_one_of(std::string_view& text, std::string_view characters) {
  const bool found = !text.empty() && characters.find(text.front()) != std::string_view::npos;
  text.remove_prefix(found ? 1 : 0);
  return found;
}

// [-] digits [. digits] [e [+-] digits], with digits on at least one side of the point.
bool has_number_syntax(std::string_view text) {
  skip_one_of(text, "-");
  const bool before = skip_digits(text);
  const bool after = skip_one_of(text, ".") && skip_digits(text);
  if (skip_one_of(text, "eE")) {
    skip_one_of(text, "+-");
    if (!skip_digits(text)) {
      return false;
    }
  }
  return (before || after) && text.empty();
}

bool has_leading_zero(std::string_view text) {
  skip_one_of(text, "-");
  return text.size() > 1 && text[0] == '0' && kDigits.find(text[1]) != std::string_view::npos;
}

// Advice that integers and other numbers share.
std::string digits_remedy(std::string_view text) {
  if (has_number_syntax(text) && has_leading_zero(text)) {
    return "; write it without leading zeros";
  }
  std::string digits(text);
  std::erase_if(digits, [](char c) { return c == '_' || c == ',' || c == '+'; });
  return digits != text && has_number_syntax(digits) && !has_leading_zero(digits)
             ? "; write " + digits
             : "";
}

// Length of the UTF-8 sequence at the front of `text`, 0 if it is not one (overlong forms,
// surrogates and values above U+10FFFF are not).
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0;
  };
  const auto continues = [&](size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const unsigned first = byte(0);
  if (first < 0x80) {
    return 1;
  }
  if (first >= 0xC2 && first <= 0xDF) {
    return continues(1) ? 2 : 0;
  }
  if (first >= 0xE0 && first <= 0xEF) {
    const bool fits = (first != 0xE0 || byte(1) >= 0xA0) && (first != 0xED || byte(1) < 0xA0);
    return fits && continues(1) && continues(2) ? 3 : 0;
  }
  if (first >= 0xF0 && first <= 0xF4) {
    const bool fits = (first != 0xF0 || byte(1) >= 0x90) && (first != 0xF4 || byte(1) < 0x90);
    return fits && continues(1) && continues(2) && continues(3) ? 4 : 0;
  }
  return 0;
}

// Words that some version of YAML reads as something other than text.
bool is_reserved_word(std::string_view text) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  constexpr std::array kReserved = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"};
  return std::find(kReserved.begin(), kReserved.end(), lower) != kReserved.end();
}

bool is_plain_text(std::string_view text) {
  constexpr std::string_view kSafe =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_/.-";
  const auto may_begin = [](unsigned char c) { return std::isalpha(c) || c == '/' || c == '_'; };
  return !text.empty() && may_begin(text[0]) &&
         text.find_first_not_of(kSafe) == std::string_view::npos && !is_reserved_word(text);
}

std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      result += {'\\', c};
    } else if (c == '\n') {
      result += "\\n";
    } else if (c == '\t') {
      result += "\\t";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      char code[8];
      std::snprintf(code, sizeof code, "\\x%02x", static_cast<unsigned>(c));
      result += code;
    } else {
      result += c;
    }
  }
  return result;
}

}  // namespace

Parsed<int64_t> parse_integer(std::string_view text) {
  int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error == std::errc() && stop == end && !has_leading_zero(text)) {
    return {value};
  }
  constexpr double kExact = 9007199254740992.0;  // 2^53: below it a double names one integer
  const auto number = parse_number(text).value;
  if (number && std::trunc(*number) == *number && std::abs(*number) < kExact) {
    return {std::nullopt, "; write " + std::to_string(static_cast<int64_t>(*number))};
  }
  return {std::nullopt, digits_remedy(text)};
}

Parsed<double> parse_number(std::string_view text) {
  if (!has_number_syntax(text) || has_leading_zero(text)) {
    return {std::nullopt, digits_remedy(text)};
  }
  double value = 0.0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size()) {
    return {std::nullopt, "; it does not fit a double"};
  }
  return {value};
}

Parsed<bool> parse_boolean(std::string_view text) {
  if (text == "true" || text == "false") {
    return {text == "true"};
  }
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const auto is_one_of = [&](auto... words) { return ((lower == words) || ...); };
  if (is_one_of("true", "yes", "on", "y", "1")) {
    return {std::nullopt, "; write true"};
  }
  return {std::nullopt, is_one_of("false", "no", "off", "n", "0") ? "; write false" : ""};
}

std::string format_number(double value) {
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
  std::string text(buffer, end);
  if (text.find('.') == std::string::npos) {
    text.insert(std::min(text.find('e'), text.size()), ".0");
  }
  return text;
}

std::string format_text(std::string_view text) {
  return is_plain_text(text) ? std::string(text) : "\"" + escaped(text) + "\"";
}

std::string in_quotes(std::string_view text) {
  constexpr size_t kLongest = 60;
  size_t length = 0;
  while (length < text.size() && length < kLongest) {
    length += std::max<size_t>(1, utf8_length(text.substr(length)));
  }
  return "\"" + escaped(text.substr(0, length)) + (length < text.size() ? "..." : "") + "\"";
}

std::optional<size_t> find_invalid_byte(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const unsigned char c = text[i];
    const bool is_control = (c < 0x20 && c != '\t' && c != '\n' && c != '\r') || c == 0x7F;
    const size_t length = is_control ? 0 : utf8_length(text.substr(i));
    if (length == 0) {
      return i;
    }
    i += length;
  }
  return std::nullopt;
}

}  // namespace narrowgauge::trainer

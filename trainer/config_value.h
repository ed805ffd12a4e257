#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace narrowgauge::trainer {

// Scalars between YAML text and C++, stricter than YAML: what two readers of YAML could understand
// differently (010, yes, 1_000) is refused.

// A value, or what to write instead: "; write it without leading zeros", or "" where there is no
// better advice than the list of what is expected.
template <typename T>
struct Parsed {
  std::optional<T> value;
  std::string remedy = {};
};

// Decimal digits with an optional minus, no leading zeros, within int64.
Parsed<int64_t> parse_integer(std::string_view text);
// Decimal digits, point and exponent; finite.
Parsed<double> parse_number(std::string_view text);
// true or false.
Parsed<bool> parse_boolean(std::string_view text);

// The shortest text that parse_number reads back to the same bits, and that YAML 1.1 readers take
// for a number: 3.0e-04, 1.0, 0.95. REQUIRES: finite.
std::string format_number(double value);

// A YAML scalar that every reader takes for this text: plain where that is safe, else double-quoted
// with escapes. REQUIRES: UTF-8.
std::string format_text(std::string_view text);

// `text` in double quotes for a message: control characters escaped, cut after 60 bytes.
std::string in_quotes(std::string_view text);

// Where `text` stops being what a YAML file or a value may hold: UTF-8 without control characters
// but tab and line ends. nullopt if nowhere.
std::optional<size_t> find_invalid_byte(std::string_view text);

}  // namespace narrowgauge::trainer

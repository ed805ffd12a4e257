#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace narrowgauge::data {

// Offset of the first byte that begins no well-formed UTF-8 sequence (Unicode 15, table 3-7: no
// overlong forms, no surrogates, nothing above U+10FFFF), or npos when there is none.
size_t find_invalid_utf8(std::string_view text);

// Each maximal ill-formed part becomes U+FFFD, as Python's errors="replace" does.
std::string replace_invalid_utf8(std::string_view text);

// Largest length <= `limit` that does not cut a sequence of well-formed `text`.
size_t utf8_boundary(std::string_view text, size_t limit);

}  // namespace narrowgauge::data

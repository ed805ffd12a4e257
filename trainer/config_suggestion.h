#pragma once

#include <span>
#include <string>
#include <string_view>

namespace narrowgauge::trainer {

// The end of an error message about a key or a section that does not exist: "; did you mean x?" for
// a typo, for a key of another section and for the name another trainer gives it, else the list of
// those that do exist.
std::string suggest_key(std::string_view section, std::string_view name);
std::string suggest_section(std::string_view section);

// The same about a value that is none of `choices`; empty where none is near, since the message
// lists them.
std::string suggest_choice(std::span<const std::string_view> choices, std::string_view text);

}  // namespace narrowgauge::trainer

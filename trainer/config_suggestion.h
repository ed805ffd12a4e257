#pragma once

#include <string>
#include <string_view>

namespace narrowgauge::trainer {

// The end of an error message about a key or a section that does not exist: "; did you mean x?" for
// a typo, for a key of another section and for the name another trainer gives it, else the list of
// those that do exist.
std::string suggest_key(std::string_view section, std::string_view name);
std::string suggest_section(std::string_view section);

}  // namespace narrowgauge::trainer

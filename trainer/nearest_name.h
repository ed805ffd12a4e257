#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace narrowgauge::trainer {

// Insertions, deletions, replacements and swaps of neighbours between the two, in bytes (optimal
// string alignment). Time O(|a| |b|); a name longer than 100 bytes is compared by its first 100.
size_t edit_distance(std::string_view a, std::string_view b);

// The candidate a misspelt `name` meant: the first of the smallest edit distance, if at most a
// third of the name is wrong. A name that is the beginning of exactly one candidate means that one.
std::optional<std::string_view> nearest_name(std::string_view name,
                                             std::span<const std::string_view> candidates);

// "a, b, c"
std::string join(std::span<const std::string_view> names);

}  // namespace narrowgauge::trainer

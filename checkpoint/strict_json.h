#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace narrowgauge::checkpoint {

// nlohmann's parser keeps the last of two equal keys, so a file could show one value to us and
// another to the next tool. This one refuses duplicates, nesting deeper than 64 and NUL bytes.
// `source` names the text in errors (a file). Throws std::runtime_error.
nlohmann::json parse_strict_json(std::string_view text, const std::string& source);

// object[key] as T, or an error naming the key, the type expected and the one found.
// Supported: int64_t (integers in range only), double, bool, std::string.
template <typename T>
T json_value(const nlohmann::json& object, const std::string& key, const std::string& source);
template <>
int64_t json_value(const nlohmann::json& object, const std::string& key, const std::string& source);
template <>
double json_value(const nlohmann::json& object, const std::string& key, const std::string& source);
template <>
bool json_value(const nlohmann::json& object, const std::string& key, const std::string& source);
template <>
std::string json_value(const nlohmann::json& object, const std::string& key,
                       const std::string& source);

}  // namespace narrowgauge::checkpoint

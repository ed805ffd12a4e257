#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace narrowgauge::data {

// Fields of JSON that others wrote. All throw std::runtime_error that names the field, what was
// expected there and what stands there instead.

// The value of a key that must be there.
const nlohmann::json& json_field(const nlohmann::json& object, const char* key);

// The same, where the value must be an array or an object.
const nlohmann::json& json_array(const nlohmann::json& object, const char* key);
const nlohmann::json& json_object(const nlohmann::json& object, const char* key);

std::string json_string(const nlohmann::json& object, const char* key);
std::string json_string(const nlohmann::json& object, const char* key, const char* fallback);
bool json_bool(const nlohmann::json& object, const char* key, bool fallback);
uint64_t json_unsigned(const nlohmann::json& object, const char* key);

// `value` itself must be an object; `what` it is, for the message: "the tokenizer".
void require_json_object(const nlohmann::json& value, const char* what);

}  // namespace narrowgauge::data

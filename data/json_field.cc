#include "data/json_field.h"

#include <stdexcept>

namespace narrowgauge::data {
namespace {

using nlohmann::json;

const json& require(bool fits, const json& value, const char* key, const char* expected) {
  if (!fits) {
    throw std::runtime_error(std::string("expected ") + expected + " in \"" + key + "\", got " +
                             value.type_name());
  }
  return value;
}

// nullptr where the object has no such key.
const json* find(const json& object, const char* key) {
  if (!object.is_object()) {
    throw std::runtime_error(std::string("expected an object with \"") + key + "\", got " +
                             object.type_name());
  }
  const auto found = object.find(key);
  return found == object.end() ? nullptr : &*found;
}

}  // namespace

const json& json_field(const json& object, const char* key) {
  if (const json* value = find(object, key)) {
    return *value;
  }
  std::string keys;
  for (const auto& [name, value] : object.items()) {
    if (keys.size() > 100) {
      keys += ", ...";
      break;
    }
    keys += (keys.empty() ? "" : ", ") + name;
  }
  throw std::runtime_error(std::string("expected the key \"") + key + "\", got an object with " +
                           (keys.empty() ? "none" : keys));
}

const json& json_array(const json& object, const char* key) {
  const json& value = json_field(object, key);
  return require(value.is_array(), value, key, "an array");
}

const json& json_object(const json& object, const char* key) {
  const json& value = json_field(object, key);
  return require(value.is_object(), value, key, "an object");
}

std::string json_string(const json& object, const char* key) {
  const json& value = json_field(object, key);
  return require(value.is_string(), value, key, "a string").get<std::string>();
}

std::string json_string(const json& object, const char* key, const char* fallback) {
  return find(object, key) == nullptr ? fallback : json_string(object, key);
}

bool json_bool(const json& object, const char* key, bool fallback) {
  const json* value = find(object, key);
  return value == nullptr ? fallback
                          : require(value->is_boolean(), *value, key, "true or false").get<bool>();
}

uint64_t json_unsigned(const json& object, const char* key) {
  const json& value = json_field(object, key);
  return require(value.is_number_unsigned(), value, key, "a non-negative integer").get<uint64_t>();
}

void require_json_object(const json& value, const char* what) {
  if (!value.is_object()) {
    throw std::runtime_error(std::string("expected ") + what + " as a JSON object, got " +
                             value.type_name());
  }
}

}  // namespace narrowgauge::data

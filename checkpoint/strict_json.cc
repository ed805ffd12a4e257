#include "checkpoint/strict_json.h"

#include <limits>
#include <set>
#include <stdexcept>
#include <vector>

namespace narrowgauge::checkpoint {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 64;

[[noreturn]] void fail_type(const json& value, const std::string& key, const char* expected,
                            const std::string& source) {
  std::string shown = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (shown.size() > 80) {
    shown = shown.substr(0, 77) + "...";
  }
  throw std::runtime_error(source + ": expected " + expected + " for '" + key + "', got " + shown);
}

const json& member(const json& object, const std::string& key, const std::string& source) {
  if (!object.is_object()) {
    throw std::runtime_error(source + ": expected an object holding '" + key + "', got " +
                             object.type_name());
  }
  const auto found = object.find(key);
  if (found == object.end()) {
    throw std::runtime_error(source + ": missing key '" + key + "'");
  }
  return *found;
}

}  // namespace

json parse_strict_json(std::string_view text, const std::string& source) {
  // The parser takes NUL for the end of the text and would ignore what follows.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) {
    throw std::runtime_error(source + ": JSON has a NUL byte at offset " + std::to_string(nul));
  }
  std::vector<std::set<std::string>> keys;
  const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth > kMaxDepth) {
      throw std::runtime_error(source + ": JSON nests deeper than " + std::to_string(kMaxDepth));
    }
    if (event == json::parse_event_t::object_start) {
      keys.emplace_back();
    } else if (event == json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == json::parse_event_t::key &&
               !keys.back().insert(parsed.get_ref<const std::string&>()).second) {
      throw std::runtime_error(source + ": JSON has the key '" + parsed.get<std::string>() +
                               "' twice");
    }
    return true;
  };
  try {
    return json::parse(text, check);
  } catch (const json::exception& error) {
    throw std::runtime_error(source + ": not valid JSON: " + error.what());
  }
}

template <>
int64_t json_value<int64_t>(const json& object, const std::string& key, const std::string& source) {
  const json& value = member(object, key, source);
  const bool fits =
      value.is_number_integer() &&
      (!value.is_number_unsigned() ||
       value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
  if (!fits) {
    fail_type(value, key, "an integer of at most 63 bits", source);
  }
  return value.get<int64_t>();
}

template <>
double json_value<double>(const json& object, const std::string& key, const std::string& source) {
  const json& value = member(object, key, source);
  if (!value.is_number()) {
    fail_type(value, key, "a number", source);
  }
  return value.get<double>();
}

template <>
bool json_value<bool>(const json& object, const std::string& key, const std::string& source) {
  const json& value = member(object, key, source);
  if (!value.is_boolean()) {
    fail_type(value, key, "true or false", source);
  }
  return value.get<bool>();
}

template <>
std::string json_value<std::string>(const json& object, const std::string& key,
                                    const std::string& source) {
  const json& value = member(object, key, source);
  if (!value.is_string()) {
    fail_type(value, key, "a string", source);
  }
  return value.get<std::string>();
}

}  // namespace narrowgauge::checkpoint

#include "jinja/builtins.h"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <ctime>
#include <functional>
#include <map>
#include <stdexcept>
#include <string_view>

namespace narrowgauge::jinja {
namespace {

using Function = std::function<Value(const Value&, const Arguments&)>;

constexpr std::string_view kSpace = " \t\n\r\f\v";
constexpr int64_t kMaxRange = 100'000;
constexpr size_t kMaxBytes = size_t{1} << 25;  // of a text that is made
constexpr int kMaxIndent = 16;

const std::string& text_of(const Value& value) {
  if (!value.is_defined || !value.json.is_string()) {
    throw std::runtime_error("expected a string, got " + type_name(value));
  }
  return value.json.get_ref<const std::string&>();
}

std::string names_of(const std::map<std::string, Function>& functions) {
  std::string names;
  for (const auto& [name, function] : functions) names += (names.empty() ? "" : ", ") + name;
  return names;
}

void require_size(const std::string& text) {
  if (text.size() > kMaxBytes) throw std::runtime_error("the text is too long");
}

enum Sides { kLeft = 1, kRight = 2, kBoth = 3 };

Value strip(const Value& value, const Value& characters, Sides sides) {
  std::string text = text_of(value);
  const bool is_given = characters.is_defined && !characters.json.is_null();
  const std::string set(is_given ? std::string_view(text_of(characters)) : kSpace);
  if ((sides & kRight) != 0) text.erase(text.find_last_not_of(set) + 1);
  if ((sides & kLeft) != 0) text.erase(0, std::min(text.find_first_not_of(set), text.size()));
  return {Json(text)};
}

Value replace(const Value& value, const Arguments& arguments) {
  const std::string& text = text_of(value);
  const Value from_value = arguments.get(0);
  const Value to_value = arguments.get(1);
  const std::string& from = text_of(from_value);
  const std::string& to = text_of(to_value);
  if (from.empty()) throw std::runtime_error("replace: expected a text to look for");
  if (arguments.values.size() > 2) throw std::runtime_error("replace: a count is not supported");
  std::string replaced;
  size_t begin = 0;
  for (size_t at = 0; (at = text.find(from, begin)) != std::string::npos;) {
    replaced.append(text, begin, at - begin).append(to);
    require_size(replaced);
    begin = at + from.size();
  }
  return {Json(replaced.append(text, begin))};
}

Value split(const Value& value, const Arguments& arguments) {
  const std::string& text = text_of(value);
  const Value separator = arguments.get(0, "sep");
  const Value limit = arguments.get(1, "maxsplit");
  int64_t splits_left = limit.is_defined ? limit.json.get<int64_t>() : -1;
  Json parts = Json::array();
  if (!separator.is_defined || separator.json.is_null()) {
    for (size_t at = text.find_first_not_of(kSpace); at != std::string::npos;) {
      const size_t end =
          splits_left-- == 0 ? text.size() : std::min(text.find_first_of(kSpace, at), text.size());
      parts.push_back(text.substr(at, end - at));
      at = text.find_first_not_of(kSpace, end);
    }
    return {parts};
  }
  const std::string& cut = text_of(separator);
  if (cut.empty()) throw std::runtime_error("split: expected a separator that is not empty");
  size_t begin = 0;
  for (size_t at = 0; splits_left-- != 0 && (at = text.find(cut, begin)) != std::string::npos;) {
    parts.push_back(text.substr(begin, at - begin));
    begin = at + cut.size();
  }
  parts.push_back(text.substr(begin));
  return {parts};
}

// ASCII alone: the letters of role names and tags.
Value change_case(const Value& value, int (*change)(int), bool first_only = false) {
  std::string text = text_of(value);
  for (size_t i = 0; i < (first_only ? std::min<size_t>(1, text.size()) : text.size()); ++i) {
    text[i] = static_cast<char>(change(static_cast<unsigned char>(text[i])));
  }
  return {Json(text)};
}

Value length(const Value& value) {
  if (value.is_defined && value.json.is_string()) {
    const std::string& text = value.json.get_ref<const std::string&>();
    return {Json(std::count_if(text.begin(), text.end(), [](char c) {
      return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
    }))};
  }
  if (!value.is_defined || !value.json.is_structured()) {
    throw std::runtime_error("length: expected a list, a mapping or a string, got " +
                             type_name(value));
  }
  return {Json(value.json.size())};
}

enum class Part { kKeys, kValues, kItems };

Value parts_of(const Value& value, Part part) {
  if (!value.is_defined || !value.json.is_object()) {
    throw std::runtime_error("expected a mapping, got " + type_name(value));
  }
  Json list = Json::array();
  for (const auto& [key, element] : value.json.items()) {
    if (part == Part::kItems) {
      Json pair = Json::array();
      pair.push_back(key);
      pair.push_back(element);
      list.push_back(std::move(pair));
    } else {
      list.push_back(part == Part::kKeys ? Json(key) : element);
    }
  }
  return {list};
}

Value to_list(const Value& value) {
  if (value.json.is_object()) return parts_of(value, Part::kKeys);
  if (!value.is_defined || !value.json.is_array()) {
    throw std::runtime_error("expected a list, got " + type_name(value));
  }
  return value;
}

Value join(const Value& value, const Arguments& arguments) {
  const std::string separator = to_text(arguments.get(0, "d"));
  const Value attribute = arguments.get(1, "attribute");
  std::string text;
  bool is_first = true;
  for (const auto& element : to_list(value).json) {
    text += is_first ? "" : separator;
    is_first = false;
    text += to_text(attribute.is_defined ? item({element}, attribute) : Value{element});
    require_size(text);
  }
  return {Json(text)};
}

// selectattr(attribute, test, argument) and its opposite.
Value select_by_attribute(const Value& value, const Arguments& arguments, bool keeps) {
  Json kept = Json::array();
  const Value test = arguments.get(1);
  Arguments rest;
  if (arguments.values.size() > 2) rest.values = {arguments.values[2]};
  for (const auto& element : to_list(value).json) {
    const Value of_element = item({element}, arguments.get(0));
    const bool passes =
        test.is_defined ? apply_test(text_of(test), of_element, rest) : is_true(of_element);
    if (passes == keeps) kept.push_back(element);
  }
  return {kept};
}

Value map_list(const Value& value, const Arguments& arguments) {
  const Value attribute = arguments.get(99, "attribute");
  Json mapped = Json::array();
  for (const auto& element : to_list(value).json) {
    mapped.push_back(element_of(attribute.is_defined
                                    ? item({element}, attribute)
                                    : apply_filter(text_of(arguments.get(0)), {element}, {})));
  }
  return {mapped};
}

Value to_integer(const Value& value) {
  if (value.json.is_number()) return {Json(static_cast<int64_t>(value.json.get<double>()))};
  try {
    return {Json(static_cast<int64_t>(std::stoll(text_of(value))))};
  } catch (const std::logic_error&) {
    return {Json(0)};
  }
}

Value default_to(const Value& value, const Arguments& arguments) {
  const Value otherwise = arguments.get(0, "default_value");
  const bool replaces_false = is_true(arguments.get(1, "boolean"));
  const bool is_kept = value.is_defined && (!replaces_false || is_true(value));
  return is_kept ? value : otherwise.is_defined ? otherwise : Value{Json("")};
}

Value tojson(const Value& value, const Arguments& arguments) {
  if (!value.is_defined) throw std::runtime_error("tojson: the value is undefined");
  const Value indent = arguments.get(99, "indent");
  if (!arguments.values.empty() || arguments.named.size() > (indent.is_defined ? 1 : 0)) {
    throw std::runtime_error("tojson: of its arguments only indent is supported");
  }
  if (!indent.is_defined || indent.json.is_null()) return {Json(to_json(value.json))};
  const auto width = indent.json.get<int64_t>();
  if (width < 0 || width > kMaxIndent) {
    throw std::runtime_error("tojson: expected an indent from 0 to 16");
  }
  return {Json(to_json(value.json, static_cast<int>(width)))};
}

const std::map<std::string, Function>& filters() {
  static const std::map<std::string, Function> all = {
      {"trim", [](auto& v, auto& a) { return strip(v, a.get(0, "chars"), kBoth); }},
      {"length", [](auto& v, auto&) { return length(v); }},
      {"count", [](auto& v, auto&) { return length(v); }},
      {"tojson", tojson},
      {"upper", [](auto& v, auto&) { return change_case(v, std::toupper); }},
      {"lower", [](auto& v, auto&) { return change_case(v, std::tolower); }},
      {"capitalize",
       [](auto& v, auto&) {
         return change_case(change_case(v, std::tolower), std::toupper, /*first_only=*/true);
       }},
      {"list", [](auto& v, auto&) { return to_list(v); }},
      {"first", [](auto& v, auto&) { return item(v, {Json(0)}); }},
      {"last", [](auto& v, auto&) { return item(v, {Json(-1)}); }},
      {"join", join},
      {"replace", replace},
      {"string", [](auto& v, auto&) { return Value{Json(to_text(v))}; }},
      {"int", [](auto& v, auto&) { return to_integer(v); }},
      {"items", [](auto& v, auto&) { return parts_of(v, Part::kItems); }},
      {"default", default_to},
      {"d", default_to},
      {"safe", [](auto& v, auto&) { return v; }},
      {"selectattr", [](auto& v, auto& a) { return select_by_attribute(v, a, true); }},
      {"rejectattr", [](auto& v, auto& a) { return select_by_attribute(v, a, false); }},
      {"map", map_list},
  };
  return all;
}

const std::map<std::string, Function>& string_methods() {
  static const std::map<std::string, Function> all = {
      {"strip", [](auto& v, auto& a) { return strip(v, a.get(0), kBoth); }},
      {"lstrip", [](auto& v, auto& a) { return strip(v, a.get(0), kLeft); }},
      {"rstrip", [](auto& v, auto& a) { return strip(v, a.get(0), kRight); }},
      {"startswith",
       [](auto& v, auto& a) { return Value{Json(text_of(v).starts_with(text_of(a.get(0))))}; }},
      {"endswith",
       [](auto& v, auto& a) { return Value{Json(text_of(v).ends_with(text_of(a.get(0))))}; }},
      {"split", split},
      {"replace", replace},
      {"upper", [](auto& v, auto&) { return change_case(v, std::toupper); }},
      {"lower", [](auto& v, auto&) { return change_case(v, std::tolower); }},
  };
  return all;
}

const std::map<std::string, Function>& mapping_methods() {
  static const std::map<std::string, Function> all = {
      {"items", [](auto& v, auto&) { return parts_of(v, Part::kItems); }},
      {"keys", [](auto& v, auto&) { return parts_of(v, Part::kKeys); }},
      {"values", [](auto& v, auto&) { return parts_of(v, Part::kValues); }},
      {"get",
       [](auto& v, auto& a) {
         const Value found = item(v, a.get(0));
         const Value otherwise = a.get(1, "default");
         return found.is_defined ? found : otherwise.is_defined ? otherwise : Value{Json(nullptr)};
       }},
  };
  return all;
}

Value range(const Arguments& arguments) {
  std::vector<int64_t> bounds;
  for (const Value& value : arguments.values) bounds.push_back(value.json.get<int64_t>());
  if (bounds.empty() || bounds.size() > 3)
    throw std::runtime_error("range: expected 1 to 3 bounds");
  if (bounds.size() == 1) bounds.insert(bounds.begin(), 0);
  const int64_t step = bounds.size() == 3 ? bounds[2] : 1;
  if (step == 0) throw std::runtime_error("range: expected a step other than 0");
  Json list = Json::array();
  for (int64_t i = bounds[0]; step > 0 ? i < bounds[1] : i > bounds[1]; i += step) {
    if (static_cast<int64_t>(list.size()) == kMaxRange) {
      throw std::runtime_error("range: expected at most 100000 elements");
    }
    list.push_back(i);
  }
  return {list};
}

Value now_as(const std::string& format) {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  ::localtime_r(&now, &local);
  char text[256];
  return {Json(std::string(text, std::strftime(text, sizeof text, format.c_str(), &local)))};
}

bool is_text_test(const std::string& name, const Value& value, const Arguments& arguments) {
  const Json& json = value.json;
  const Value other = arguments.get(0);
  if (name == "string") return json.is_string();
  if (name == "number") return json.is_number();
  if (name == "integer") return json.is_number_integer();
  if (name == "float") return json.is_number_float();
  if (name == "boolean") return json.is_boolean();
  if (name == "mapping") return json.is_object();
  if (name == "iterable" || name == "sequence") return json.is_structured() || json.is_string();
  if (name == "none") return json.is_null();
  if (name == "true") return json.is_boolean() && json.get<bool>();
  if (name == "false") return json.is_boolean() && !json.get<bool>();
  if (name == "equalto" || name == "eq") return is_true(operate("==", value, other));
  if (name == "ne") return is_true(operate("!=", value, other));
  if (name == "in") return is_true(operate("in", value, other));
  if (name == "odd" || name == "even") {
    const Value rest = operate("%", value, {Json(2)});
    return is_true(rest) == (name == "odd");
  }
  throw std::runtime_error("the test '" + name +
                           "' is not supported; boolean, defined, eq, equalto, even, false, float, "
                           "in, integer, iterable, mapping, ne, none, number, odd, sequence, "
                           "string, true and undefined are");
}

}  // namespace

Value Arguments::get(size_t position, const std::string& name) const {
  if (position < values.size()) return values[position];
  const auto found = std::find_if(named.begin(), named.end(),
                                  [&](const auto& argument) { return argument.first == name; });
  return found == named.end() ? undefined() : found->second;
}

Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments) {
  const auto found = filters().find(name);
  if (found == filters().end()) {
    throw std::runtime_error("the filter '" + name +
                             "' is not supported; these are: " + names_of(filters()));
  }
  return found->second(value, arguments);
}

bool apply_test(const std::string& name, const Value& value, const Arguments& arguments) {
  if (name == "defined") return value.is_defined;
  if (name == "undefined") return !value.is_defined;
  if (!value.is_defined && name != "eq" && name != "equalto" && name != "ne") {
    is_text_test(name, {Json(0)}, {{{Json::array()}}, {}});  // throws for an unknown name
    return false;
  }
  return is_text_test(name, value, arguments);
}

Value call_method(const Value& object, const std::string& name, const Arguments& arguments) {
  const bool is_string = object.is_defined && object.json.is_string();
  if (!is_string && !object.json.is_object()) {
    throw std::runtime_error("the method '" + name + "' of " + type_name(object) +
                             " is not supported");
  }
  const auto& methods = is_string ? string_methods() : mapping_methods();
  const auto found = methods.find(name);
  if (found == methods.end()) {
    throw std::runtime_error("the method '" + name + "' of " + type_name(object) +
                             " is not supported; these are: " + names_of(methods));
  }
  return found->second(object, arguments);
}

bool is_function(const std::string& name) {
  return name == "raise_exception" || name == "namespace" || name == "dict" || name == "range" ||
         name == "strftime_now";
}

Value call_function(const std::string& name, const Arguments& arguments) {
  if (name == "raise_exception") {
    throw std::runtime_error("the template refuses: " + to_text(arguments.get(0)));
  }
  if (name == "namespace" || name == "dict") {
    if (!arguments.values.empty()) throw std::runtime_error(name + ": expected names with values");
    Json object = Json::object();
    for (const auto& [key, value] : arguments.named) object[key] = element_of(value);
    return {object};
  }
  if (name == "range") return range(arguments);
  if (name == "strftime_now") return now_as(text_of(arguments.get(0)));
  throw std::runtime_error("the function '" + name +
                           "' is not supported; dict, namespace, raise_exception, range and "
                           "strftime_now are");
}

}  // namespace narrowgauge::jinja

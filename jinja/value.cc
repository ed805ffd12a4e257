#include "jinja/value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

namespace narrowgauge::jinja {
namespace {

[[noreturn]] void fail_operation(const std::string& op, const Value& left, const Value& right) {
  throw std::runtime_error("'" + op + "' does not fit " + type_name(left) + " and " +
                           type_name(right));
}

// Python's repr of a float: the shortest digits that give it back, ".0" where they have no point.
std::string float_text(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number > 0 ? "inf" : "-inf";
  char buffer[32];
  const double size = std::abs(number);
  const bool is_plain = size == 0 || (size >= 1e-4 && size < 1e16);
  const auto format = is_plain ? std::chars_format::fixed : std::chars_format::scientific;
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, number, format).ptr;
  std::string text(buffer, end);
  if (is_plain && text.find('.') == std::string::npos) text += ".0";
  return text;
}

void append_json(const Json& value, int indent, int depth, std::string& out) {
  if (depth > 100) throw std::runtime_error("tojson: nested too deeply");
  if (!value.is_structured()) {
    out += value.is_number_float() ? float_text(value.get<double>()) : value.dump();
    return;
  }
  const bool is_array = value.is_array();
  const auto new_line = [&](int level) {
    if (indent >= 0) out += "\n" + std::string(static_cast<size_t>(indent) * level, ' ');
  };
  out += is_array ? '[' : '{';
  bool is_first = true;
  for (const auto& element : value.items()) {
    if (!is_first) out += indent >= 0 ? "," : ", ";
    is_first = false;
    new_line(depth + 1);
    if (!is_array) out += Json(element.key()).dump() + ": ";
    append_json(element.value(), indent, depth + 1, out);
  }
  if (!is_first) new_line(depth);
  out += is_array ? ']' : '}';
}

bool is_integer(const Value& value) { return value.json.is_number_integer(); }

// Where the characters of UTF-8 begin, then the end.
std::vector<size_t> character_starts(const std::string& text) {
  std::vector<size_t> starts;
  for (size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xC0) != 0x80) starts.push_back(i);
  }
  starts.push_back(text.size());
  return starts;
}

std::string character(const std::string& text, const std::vector<size_t>& starts, int64_t index) {
  return text.substr(starts[index], starts[index + 1] - starts[index]);
}

Value integer_result(const std::string& op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflows = false;
  if (op == "+") {
    overflows = __builtin_add_overflow(a, b, &result);
  } else if (op == "-") {
    overflows = __builtin_sub_overflow(a, b, &result);
  } else if (op == "*") {
    overflows = __builtin_mul_overflow(a, b, &result);
  } else {  // Python's division rounds down
    if (b == 0) throw std::runtime_error("division by zero");
    if (b == -1) return integer_result(op == "%" ? "*" : "-", 0, op == "%" ? 0 : a);
    const bool is_rounded_up = a % b != 0 && ((a < 0) != (b < 0));
    result = op == "%" ? a % b + (is_rounded_up ? b : 0) : a / b - (is_rounded_up ? 1 : 0);
  }
  if (overflows) throw std::runtime_error("'" + op + "' overflows");
  return {Json(result)};
}

Value arithmetic(const std::string& op, const Value& left, const Value& right) {
  if (op == "+" && left.json.is_string() && right.json.is_string()) {
    return {
        Json(left.json.get_ref<const std::string&>() + right.json.get_ref<const std::string&>())};
  }
  if (op == "+" && left.json.is_array() && right.json.is_array()) {
    Value sum = left;
    sum.json.insert(sum.json.end(), right.json.begin(), right.json.end());
    return sum;
  }
  if (!left.json.is_number() || !right.json.is_number()) fail_operation(op, left, right);
  if (is_integer(left) && is_integer(right) && op != "/") {
    return integer_result(op, left.json.get<int64_t>(), right.json.get<int64_t>());
  }
  const auto a = left.json.get<double>();
  const auto b = right.json.get<double>();
  if (op == "+") return {Json(a + b)};
  if (op == "-") return {Json(a - b)};
  if (op == "*") return {Json(a * b)};
  if (b == 0) throw std::runtime_error("division by zero");
  if (op == "/") return {Json(a / b)};
  const double quotient = std::floor(a / b);
  return {Json(op == "//" ? quotient : a - quotient * b)};
}

bool compare(const std::string& op, const Value& left, const Value& right) {
  const bool fits = (left.json.is_number() && right.json.is_number()) ||
                    (left.json.is_string() && right.json.is_string());
  if (!fits) fail_operation(op, left, right);
  if (op == "<") return left.json < right.json;
  if (op == ">") return right.json < left.json;
  return op == "<=" ? left.json <= right.json : right.json <= left.json;
}

bool is_in(const Value& needle, const Value& haystack) {
  if (haystack.json.is_string() && needle.json.is_string()) {
    return haystack.json.get_ref<const std::string&>().find(
               needle.json.get_ref<const std::string&>()) != std::string::npos;
  }
  if (haystack.json.is_object()) {
    return needle.json.is_string() && haystack.json.contains(needle.json.get<std::string>());
  }
  if (!haystack.json.is_array()) fail_operation("in", needle, haystack);
  return std::find(haystack.json.begin(), haystack.json.end(), needle.json) != haystack.json.end();
}

}  // namespace

const Json& element_of(const Value& value) {
  if (!value.is_defined) {
    throw std::runtime_error("expected a value for a list or a mapping, got undefined");
  }
  return value.json;
}

bool is_true(const Value& value) {
  if (!value.is_defined || value.json.is_null()) return false;
  if (value.json.is_boolean()) return value.json.get<bool>();
  if (value.json.is_number()) return value.json.get<double>() != 0;
  if (value.json.is_string()) return !value.json.get_ref<const std::string&>().empty();
  return !value.json.empty();
}

std::string to_text(const Value& value) {
  if (!value.is_defined) return "";
  if (value.json.is_string()) return value.json.get<std::string>();
  if (value.json.is_null()) return "None";
  if (value.json.is_boolean()) return value.json.get<bool>() ? "True" : "False";
  if (value.json.is_number_float()) return float_text(value.json.get<double>());
  if (value.json.is_number()) return value.json.dump();
  throw std::runtime_error("cannot write " + type_name(value) + "; write it with tojson");
}

std::string to_json(const Json& value, int indent) {
  std::string out;
  append_json(value, indent, 0, out);
  return out;
}

std::string type_name(const Value& value) {
  if (!value.is_defined) return "undefined";
  if (value.json.is_null()) return "none";
  if (value.json.is_object()) return "a mapping";
  if (value.json.is_array()) return "a list";
  return std::string("a ") + value.json.type_name();
}

Value item(const Value& object, const Value& index) {
  if (!object.is_defined || !index.is_defined) {
    throw std::runtime_error("expected a value with fields, got undefined");
  }
  if (object.json.is_object()) {
    if (!index.json.is_string()) return undefined();
    const auto found = object.json.find(index.json.get_ref<const std::string&>());
    return found == object.json.end() ? undefined() : Value{*found};
  }
  if (!is_integer(index) || !(object.json.is_array() || object.json.is_string())) {
    return undefined();
  }
  auto position = index.json.get<int64_t>();
  if (object.json.is_array()) {
    const auto size = static_cast<int64_t>(object.json.size());
    position += position < 0 ? size : 0;
    return position < 0 || position >= size ? undefined() : Value{object.json[position]};
  }
  const auto& text = object.json.get_ref<const std::string&>();
  const auto starts = character_starts(text);
  const auto size = static_cast<int64_t>(starts.size()) - 1;
  position += position < 0 ? size : 0;
  return position < 0 || position >= size ? undefined()
                                          : Value{Json(character(text, starts, position))};
}

Value slice(const Value& object, const Value& start, const Value& stop, const Value& step) {
  const bool is_text = object.json.is_string();
  if (!object.is_defined || !(is_text || object.json.is_array())) {
    throw std::runtime_error("cannot slice " + type_name(object));
  }
  const auto number = [](const Value& part, int64_t otherwise) {
    if (!part.is_defined || part.json.is_null()) return otherwise;
    if (!is_integer(part)) throw std::runtime_error("cannot slice by " + type_name(part));
    return std::clamp<int64_t>(part.json.get<int64_t>(), -(int64_t{1} << 40), int64_t{1} << 40);
  };
  const int64_t stride = number(step, 1);
  if (stride == 0) throw std::runtime_error("expected a slice with a step other than 0");
  const std::string text = is_text ? object.json.get<std::string>() : std::string();
  const auto starts = is_text ? character_starts(text) : std::vector<size_t>();
  const int64_t size =
      is_text ? static_cast<int64_t>(starts.size()) - 1 : static_cast<int64_t>(object.json.size());
  const int64_t lowest = stride > 0 ? 0 : -1;
  const int64_t highest = stride > 0 ? size : size - 1;
  const auto bound = [&](const Value& part, int64_t otherwise) {
    const bool is_given = part.is_defined && !part.json.is_null();
    const int64_t at = number(part, otherwise);
    return is_given ? std::clamp(at < 0 ? at + size : at, lowest, highest) : otherwise;
  };
  const int64_t begin = bound(start, stride > 0 ? 0 : size - 1);
  const int64_t end = bound(stop, stride > 0 ? size : -1);
  Value result{is_text ? Json("") : Json::array()};
  for (int64_t i = begin; stride > 0 ? i < end : i > end; i += stride) {
    if (is_text) {
      result.json.get_ref<std::string&>() += character(text, starts, i);
    } else {
      result.json.push_back(object.json[i]);
    }
  }
  return result;
}

Value operate(const std::string& op, const Value& left, const Value& right) {
  if (op == "~") return {Json(to_text(left) + to_text(right))};
  if (op == "==" || op == "!=") {
    const bool is_equal = left.is_defined == right.is_defined && left.json == right.json;
    return {Json(is_equal == (op == "=="))};
  }
  if (!left.is_defined || !right.is_defined) fail_operation(op, left, right);
  if (op == "in" || op == "not in") return {Json(is_in(left, right) == (op == "in"))};
  if (op == "<" || op == ">" || op == "<=" || op == ">=") return {Json(compare(op, left, right))};
  return arithmetic(op, left, right);
}

}  // namespace narrowgauge::jinja

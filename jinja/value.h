#pragma once

#include <string>

#include "jinja/syntax.h"

namespace narrowgauge::jinja {

// JSON, or Jinja's undefined: what a missing variable or field is.
struct Value {
  Json json;
  bool is_defined = true;
};

inline Value undefined() { return {Json(), false}; }

// What goes into a list or a mapping. Throws std::runtime_error for undefined, which neither holds.
const Json& element_of(const Value& value);

// Python's bool(value).
bool is_true(const Value& value);

// What "{{ value }}" writes: Python's str() of it. Throws std::runtime_error for a list and an
// object, which a template writes with tojson.
std::string to_text(const Value& value);

// Python's json.dumps(value, ensure_ascii=False, indent=indent): transformers' tojson. indent < 0:
// in one line.
std::string to_json(const Json& value, int indent = -1);

// Python's type, for messages.
std::string type_name(const Value& value);

// object[index] as Jinja has it, undefined where there is none: a field of an object, an element
// of a list or a character of a string, from the end where the index is negative.
Value item(const Value& object, const Value& index);

// object[start:stop:step] of a list or a string. Undefined or null parts stand for Python's.
Value slice(const Value& object, const Value& start, const Value& stop, const Value& step);

// The binary operators but "and" and "or". Throws std::runtime_error for types that do not fit.
Value operate(const std::string& op, const Value& left, const Value& right);

}  // namespace narrowgauge::jinja

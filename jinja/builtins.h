#pragma once

#include <string>
#include <utility>
#include <vector>

#include "jinja/value.h"

namespace narrowgauge::jinja {

// What is given to a filter, a test, a method or a function, in order and by name.
struct Arguments {
  std::vector<Value> values;
  std::vector<std::pair<std::string, Value>> named;

  // The argument at `position`, or called `name`; undefined where it was not given.
  Value get(size_t position, const std::string& name = "") const;
};

// Each throws std::runtime_error that names what is not there, and for values that do not fit.
Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments);
bool apply_test(const std::string& name, const Value& value, const Arguments& arguments);
Value call_method(const Value& object, const std::string& name, const Arguments& arguments);
Value call_function(const std::string& name, const Arguments& arguments);
bool is_function(const std::string& name);

}  // namespace narrowgauge::jinja

#pragma once

#include <c10/core/ScalarType.h>

#include <string_view>

namespace narrowgauge::trainer {

// "float32", "bfloat16" or "float16", as the configuration spells them. Throws ConfigError on
// another name.
c10::ScalarType parse_dtype(std::string_view name);

}  // namespace narrowgauge::trainer

#include "trainer/dtype.h"

#include <string>

#include "trainer/config.h"

namespace narrowgauge::trainer {

c10::ScalarType parse_dtype(std::string_view name) {
  if (name == "float32") {
    return c10::kFloat;
  }
  if (name == "bfloat16") {
    return c10::kBFloat16;
  }
  if (name == "float16") {
    return c10::kHalf;
  }
  throw ConfigError("expected float32, bfloat16 or float16, got '" + std::string(name) + "'");
}

}  // namespace narrowgauge::trainer

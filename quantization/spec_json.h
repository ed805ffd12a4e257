#pragma once

#include <nlohmann/json.hpp>

#include "quantization/scheme.h"

// Schemes and specifications as JSON, for files: every field by name, enumerations as words
// ("affine", "symmetric", "per_group", "int"), dtypes as torch names them ("bfloat16"; "input" for
// kInputDtype).
namespace narrowgauge::quantization {

nlohmann::ordered_json to_json(const QuantizationSpec& spec);
nlohmann::ordered_json to_json(const Scheme& scheme);

// Throw std::runtime_error, beginning with `source`, for a missing, unknown or wrong field, and
// where check_spec throws.
QuantizationSpec spec_from_json(const nlohmann::json& json, const std::string& source);
Scheme scheme_from_json(const nlohmann::json& json, const std::string& source);

// The words alone: dtypes.
std::string dtype_name(c10::ScalarType dtype);
c10::ScalarType dtype_by_name(const std::string& name, const std::string& source);

}  // namespace narrowgauge::quantization

#pragma once

#include <ATen/core/Tensor.h>

#include <nlohmann/json.hpp>

#include "quantization/scheme.h"

namespace narrowgauge::exports {

// torchao's JSON of its configurations and tensor attributes (core/config.py, config_to_dict).

// The configuration that quantizes a linear as `scheme` does, at the version that stays.
nlohmann::json torchao_configuration(const quantization::Scheme& scheme);

// How its tensor subclass quantizes inputs on the fly: act_quant_kwargs; null where it does not.
nlohmann::json torchao_activation(const quantization::Scheme& scheme);

nlohmann::json torchao_dtype(const char* name);
const char* torch_dtype_name(at::ScalarType dtype);  // bfloat16 | float16 | float32

}  // namespace narrowgauge::exports

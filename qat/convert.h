#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "nn/transformer_config.h"
#include "quantization/quantized_model.h"

namespace narrowgauge::qat {

// The quantized model that a prepared one has trained: each weight of `schemes` (as
// prepared_schemes gives them) is cast to `dtype`, in which forward read it, and quantized, so that
// its values are those of the last forward, bit for bit; q, k and v and gate and up are then taken
// apart. All other parameters are stored in `plain_dtype`.
//
// full_parameter: each whole parameter by our name, called in the order of
// checkpoint::parameter_specs(config).
quantization::QuantizedModel convert(
    const nn::TransformerConfig& config,
    const std::vector<std::pair<std::string, quantization::Scheme>>& schemes, at::ScalarType dtype,
    at::ScalarType plain_dtype,
    const std::function<at::Tensor(const std::string& name)>& full_parameter);

}  // namespace narrowgauge::qat

#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "nn/transformer_config.h"
#include "qat/prepared_layer.h"
#include "quantization/quantized_model.h"

namespace narrowgauge::qat {

// The quantized model that a prepared one has trained: the weight of each of `layers` (as
// prepared_layers gives them) is cast to `dtype`, in which forward read it, and quantized, with its
// learned range if it has one, so that its values are those of the last forward, bit for bit; q, k
// and v and gate and up are then taken apart. All other parameters are stored in `plain_dtype`.
//
// full_parameter: each whole parameter by our name, called for parameters_to_convert in their
// order.
quantization::QuantizedModel convert(
    const nn::TransformerConfig& config, const std::vector<PreparedLayer>& layers,
    at::ScalarType dtype, at::ScalarType plain_dtype,
    const std::function<at::Tensor(const std::string& name)>& full_parameter);

// checkpoint::parameter_specs(config), each weight followed by its learned scale and zero point:
// for ranks that take part in gathering alone.
std::vector<std::string> parameters_to_convert(const nn::TransformerConfig& config,
                                               const std::vector<PreparedLayer>& layers);

}  // namespace narrowgauge::qat

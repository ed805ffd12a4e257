#pragma once

#include <c10/core/Device.h>

#include "nn/transformer.h"
#include "quantization/quantized_model.h"

namespace narrowgauge::trainer {

// Fills `model`, built on meta: linears whose weights are quantized become QuantizedLinears, other
// parameters (an embedding's codes too) get their values. Throws std::runtime_error naming the
// first tensor that is missing, left over or of another shape, and for a fused projection whose
// parts are quantized by different schemes.
void install_quantized_model(const quantization::QuantizedModel& quantized, nn::Transformer& model,
                             c10::Device device);

}  // namespace narrowgauge::trainer

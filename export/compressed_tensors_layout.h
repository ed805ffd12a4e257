#pragma once

#include "export/weight_layout.h"

// Note: compressed-tensors
//
// The format of llm-compressor, which vLLM, SGLang and transformers read (compressed-tensors
// 0.15). config.json groups modules by how their weights and inputs are quantized; the tensors of
// a module are
//   pack-quantized   weight_packed int32: code + 2^(bits - 1), 32 / bits of them in a word from
//                    the low end, rows filled to whole words; weight_scale; weight_shape int64;
//                    weight_zero_point packed likewise along rows, if asymmetric
//   int-quantized    weight int8, weight_scale, weight_zero_point int8 if asymmetric
//   float-quantized  weight e4m3, weight_scale
// and a value is (code - zero point) * scale in the scale's dtype, so scales are stored in the
// dtype in which the model's forward has them.

namespace narrowgauge::exports {

// Weights of 1 to 8 bits without activations are pack-quantized, and so is 4 bits below int8
// activations; 8 bits below int8 activations are int-quantized, e4m3 is float-quantized.
std::unique_ptr<WeightLayout> compressed_tensors_layout();

}  // namespace narrowgauge::exports

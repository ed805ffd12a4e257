#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>

#include "quantization/quantized_tensor.h"
#include "quantization/scheme.h"

namespace narrowgauge::quantization {

// The weight of one linear or embedding.
struct QuantizedWeight {
  QuantizedTensor tensor;
  Scheme scheme;                                      // tensor.spec is scheme.weight
  c10::ScalarType dtype = c10::ScalarType::BFloat16;  // in which forward reads its values
};

// What `convert` and `quantize` make of a model, and what exports read. Names are Hugging Face's,
// q, k and v apart.
struct QuantizedModel {
  std::map<std::string, QuantizedWeight> weights;  // by module: model.layers.0.self_attn.q_proj
  std::map<std::string, at::Tensor> plain;  // all other parameters: model.norm.weight, biases
};

// The file of a model inside its directory, beside config.json and the tokenizer's.
inline constexpr const char* kQuantizedModelFile = "quantized.safetensors";

// Writes DIRECTORY/quantized.safetensors (the directory is made): NAME.codes, NAME.scale,
// NAME.zero_point, NAME.outer_scale of each weight and the plain tensors under their names. The
// header's metadata hold "format": "narrowgauge-quantized-1" and "weights", a JSON object from each
// name to its scheme and dtype. The file appears whole or not at all. Throws std::runtime_error
// (disk) or c10::Error (a tensor that is not what its specification says).
void write_quantized_model(const std::filesystem::path& directory, const QuantizedModel& model);

// Reads it back, on a mapping of the file. Throws std::runtime_error, naming file and tensor, for
// whatever is missing, left over or not what the metadata say.
QuantizedModel read_quantized_model(const std::filesystem::path& directory);

}  // namespace narrowgauge::quantization

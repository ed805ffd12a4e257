#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/huggingface_config.h"
#include "checkpoint/huggingface_names.h"
#include "quantization/quantized_tensor.h"
#include "quantization/scheme.h"

namespace narrowgauge::exports {

// A model on its way out, by Hugging Face's names: fused projections are already split.
struct ExportModel {
  checkpoint::HuggingFaceConfig config;

  // In which the forward holds weights that are not quantized, and the values of those that are.
  at::ScalarType dtype = at::kBFloat16;

  // By module ("model.layers.3.mlp.up_proj"): those whose weight is quantized, and how.
  std::map<std::string, quantization::Scheme> schemes;

  // The tensor of this name, "model.norm.weight", in any floating dtype.
  std::function<at::Tensor(const std::string& name)> plain;

  // The weight of a module of `schemes`, as the last forward quantized it.
  std::function<quantization::QuantizedTensor(const std::string& module)> quantized;
};

// Gives a tensor by its name.
using TensorReader = std::function<at::Tensor(const std::string& name)>;

// One tensor that a model of this shape has, and where it stands in the forward pass.
struct ModelTensor {
  std::string name;    // model.layers.3.mlp.up_proj.weight
  std::string module;  // of a weight: model.layers.3.mlp.up_proj; else empty
  std::vector<int64_t> sizes;
};

// All of them, in the order of the forward pass; lm_head.weight only when untied.
std::vector<ModelTensor> model_tensors(const nn::TransformerConfig& config);

// The module of a weight by the tensor's name; empty for other tensors.
std::string module_of(const std::string& tensor);

// The values that the forward computes with, in the model's dtype: plain tensors, and quantized
// ones dequantized, by name.
at::Tensor model_values(const ExportModel& model, const std::string& tensor);

// One of our parameters, in which q, k and v, or gate and up, are stacked, from the tensors by
// Hugging Face's names that hold it.
at::Tensor fused_parameter(const nn::TransformerConfig& config,
                           const checkpoint::ParameterSpec& parameter, const TensorReader& read);

// The modules of linears, which runtimes quantize by default: projections, and lm_head when untied.
std::vector<std::string> linear_modules(const nn::TransformerConfig& config);

// Throws c10::Error, naming the module, unless every key of `schemes` is a module of the model and
// the dtype is float32, bfloat16 or float16.
void check_export_model(const ExportModel& model);

}  // namespace narrowgauge::exports

#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>

#include "nn/transformer_config.h"

namespace narrowgauge::checkpoint {

struct Llama2cModel {
  nn::TransformerConfig config;
  std::map<std::string, at::Tensor> parameters;  // fp32, by our names, fused; see parameter_specs
};

// Reads a model.bin of llama2.c (its first, headerless-version format, which run.c loads). The
// file has no norm epsilon and no rotary base: run.c's 1e-5 and 10000 are assumed.
// Throws std::runtime_error naming the file and both numbers when header and size disagree.
Llama2cModel read_llama2c(const std::filesystem::path& path);

}  // namespace narrowgauge::checkpoint

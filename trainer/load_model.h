#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "nn/transformer.h"

namespace narrowgauge::trainer {

// A model to run, whole on one device.
struct LoadedModel {
  std::shared_ptr<nn::Transformer> model;
  std::shared_ptr<const data::Tokenizer> tokenizer;  // null if there is none and none was named
  std::vector<int64_t> eos_tokens;                   // where generation ends
};

// Loads `path`, a Hugging Face directory, a run directory with hf/ in it or a directory that
// quantize wrote, in the dtype it is stored in (float16 as float32). `tokenizer`: "" for the
// directory's or the run's own, or what data::guess_tokenizer takes. Linears in bf16 on the CPU
// that are 2:4 sparse stay packed (sparsity/packed_semi_sparse_linear.h). Throws std::runtime_error
// for what is missing or damaged, naming it, and for a tokenizer whose ids the model does not have.
LoadedModel load_model(const std::string& path, const std::string& tokenizer, at::Device device);

// The model directory that `path` is or, as a run, holds. Throws std::runtime_error for a run
// without one.
std::filesystem::path model_directory(const std::filesystem::path& path);

// load_model's tokenizer alone.
std::shared_ptr<const data::Tokenizer> load_model_tokenizer(const std::string& path,
                                                            const std::string& tokenizer);

}  // namespace narrowgauge::trainer

#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "checkpoint/huggingface_config.h"
#include "checkpoint/model_directory.h"
#include "data/tokenizer.h"
#include "nn/transformer_config.h"
#include "trainer/run_directory.h"

namespace narrowgauge::trainer {

// What a model directory carries of `tokenizer`, which may be null.
std::vector<checkpoint::CopiedFile> tokenizer_files(const data::Tokenizer* tokenizer);

// Throws std::runtime_error if `directory` holds what an export would not replace.
void check_export(const std::filesystem::path& directory, const data::Tokenizer* tokenizer);

// What config.json says of a run's model. The tokens that begin and end a document are those of the
// model the run began with, else the tokenizer's (which may be null).
checkpoint::HuggingFaceConfig described_model(const RunDirectory& run,
                                              const nn::TransformerConfig& config,
                                              const data::Tokenizer* tokenizer);

// Writes a run's model to `directory` in Hugging Face form: config.json, weights in `dtype`, the
// files of `tokenizer` (which may be null) and the run's chat template, if it has one.
// full_parameter gives each whole parameter by name; see checkpoint::write_huggingface_directory
// for the order of its calls and the errors.
void export_huggingface_directory(
    const RunDirectory& run, const nn::TransformerConfig& config, const data::Tokenizer* tokenizer,
    const std::filesystem::path& directory, at::ScalarType dtype,
    const std::function<at::Tensor(const std::string&)>& full_parameter);

}  // namespace narrowgauge::trainer

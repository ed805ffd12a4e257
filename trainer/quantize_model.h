#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/huggingface_directory.h"
#include "data/tokenizer.h"
#include "quantization/post_training.h"

namespace narrowgauge::trainer {

// A model directory quantized into another, block by block (quantization/post_training.h).
struct QuantizeJob {
  const checkpoint::HuggingFaceDirectory& source;
  const data::Tokenizer* tokenizer;  // whose files go along; may be null
  std::filesystem::path output;
  quantization::PostTrainingOptions options;
  bool include_head = false;
  std::vector<std::vector<int64_t>> windows;  // calibration tokens, all of one length; may be none
  // All that the result depends on, for the check that an interrupted job is the same one.
  std::string fingerprint;
  std::function<void(std::string_view stage, double fraction)> progress;
};

// Throws std::runtime_error unless `output` is absent, empty or an earlier result of this function,
// and unless what stands in OUTPUT.partial has the same fingerprint.
void check_quantize_output(const std::filesystem::path& output, const std::string& fingerprint);

// Runs the job. Each finished block is written to OUTPUT.partial; a job that finds blocks there
// goes on behind them and gives the same bytes. OUTPUT appears whole, and OUTPUT.partial goes.
// Holds one block's weights and the activations of the calibration windows. Throws
// std::runtime_error (disk, damaged source) or c10::Error (a scheme that does not fit a shape).
void quantize_model(const QuantizeJob& job);

}  // namespace narrowgauge::trainer

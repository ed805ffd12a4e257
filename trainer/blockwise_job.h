#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/huggingface_directory.h"
#include "quantization/post_training.h"

namespace narrowgauge::trainer {

// A model directory made into another, block by block (quantization/post_training.h).
struct BlockwiseJob {
  const checkpoint::HuggingFaceDirectory& source;
  std::filesystem::path output;
  std::vector<std::vector<int64_t>> windows;  // calibration tokens, all of one length; may be none
  // All that the result depends on, for the check that an interrupted job is the same one.
  std::string fingerprint;
  std::string_view stage;  // "quantizing", for progress
  std::function<void(std::string_view stage, double fraction)> progress;

  // The parameters of block `layer` under their Hugging Face names, quantized or plain. The block
  // may be changed; what it passes on follows from the result.
  std::function<quantization::QuantizedModel(nn::TransformerBlock& block, int64_t layer,
                                             const quantization::CalibrationState& state)>
      convert_block;
  // Writes `output` whole; `scratch` is a folder for it to use, gone afterwards.
  std::function<void(const std::filesystem::path& scratch,
                     const quantization::QuantizedModel& model)>
      write_output;
};

// The dtype in which a block of `source` is converted and runs.
at::ScalarType conversion_dtype(const checkpoint::HuggingFaceDirectory& source);

// The parameters before and behind the blocks, plain, under their Hugging Face names.
quantization::QuantizedModel outer_parameters(const checkpoint::HuggingFaceDirectory& source);

// Runs the job; `outer` goes into the result with the blocks. Each finished block is written to
// OUTPUT.partial; a job that finds blocks there goes on behind them and gives the same bytes. Then
// OUTPUT is written, and OUTPUT.partial goes. Holds one block's weights and the activations of the
// calibration windows. Throws std::runtime_error (disk, damaged source, another job's
// OUTPUT.partial) or what the functions of `job` throw.
void run_blockwise_job(const BlockwiseJob& job, quantization::QuantizedModel outer);

}  // namespace narrowgauge::trainer

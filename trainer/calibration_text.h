#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "nn/transformer_config.h"

namespace narrowgauge::trainer {

// The text on which quantize and prune watch a model.
struct CalibrationText {
  std::vector<std::string> files;  // text, or .bin files of token ids; may be none
  int64_t samples = 0;             // windows, at most
  int64_t seq_len = 0;             // tokens of a window; 0: the model's longest, at most 2048
};

// Windows of one length, spread evenly over the text's windows; none without files. Throws
// UsageError for a window longer than the model takes, std::runtime_error for text shorter than one
// window or that cannot be read.
std::vector<std::vector<int64_t>> calibration_windows(const CalibrationText& text,
                                                      const data::Tokenizer* tokenizer,
                                                      const nn::TransformerConfig& config);

// A hash of the tokens.
uint64_t fingerprint(const std::vector<std::vector<int64_t>>& windows);

}  // namespace narrowgauge::trainer

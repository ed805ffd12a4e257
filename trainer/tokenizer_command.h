#pragma once

#include "trainer/command_line.h"

namespace narrowgauge::trainer {

// narrowgauge tokenizer train | encode | decode. Each returns kExitDone; throws UsageError for
// options that make no sense, before any text is read, and std::runtime_error else.

// Makes a byte-level BPE from text, with progress on standard error.
int train_tokenizer(const TokenizerTrainOptions& options);

// Turns lines of standard input into token ids and back. Errors name the line.
int encode_lines(const TokenizerEncodeOptions& options);
int decode_lines(const TokenizerDecodeOptions& options);

}  // namespace narrowgauge::trainer

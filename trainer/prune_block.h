#pragma once

#include <cstdint>

#include "nn/transformer.h"
#include "quantization/post_training.h"
#include "sparsity/pruning.h"

namespace narrowgauge::trainer {

enum class PruningMethod { kMagnitude, kWanda, kSparseGpt };

// The parameters of block `layer` under their Hugging Face names, with zeros in the weights of its
// linears. Each of q, k, v, gate and up is a matrix of its own. state: the calibration text, whose
// activations may be empty for kMagnitude. Throws c10::Error, naming the linear, for a pattern that
// does not fit it, and as sparsity/pruning.h says.
quantization::QuantizedModel prune_block(nn::TransformerBlock& block,
                                         const nn::TransformerConfig& config, int64_t layer,
                                         const quantization::CalibrationState& state,
                                         PruningMethod method,
                                         const sparsity::PruningPattern& pattern);

}  // namespace narrowgauge::trainer

#pragma once

#include <cstdint>
#include <vector>

#include "float8/config.h"
#include "float8/select_linears.h"
#include "nn/layer.h"
#include "nn/swap_linear.h"

namespace narrowgauge::float8 {

// Makes a Float8Linear of every Linear below `root` that `filter` accepts (all where it is null);
// parameters stay the same tensors under the same names. Before fully_shard. Returns how many.
// Throws c10::Error if `config` contradicts itself.
int64_t convert_to_float8_training(nn::Layer& root, const Float8LinearConfig& config,
                                   const nn::LinearFilter& filter = nullptr);

// The same for those that `decisions` (of select_linears) convert.
int64_t convert_to_float8_training(nn::Layer& root, const Float8LinearConfig& config,
                                   const std::vector<LinearDecision>& decisions);

// Makes a plain Linear of every Float8Linear again, for export and inference: fp8 training trains
// the high-precision weights, which are what is left. Returns how many.
int64_t convert_to_linear(nn::Layer& root);

}  // namespace narrowgauge::float8

#pragma once

#include <string>
#include <vector>

#include "trainer/config.h"

namespace narrowgauge::trainer {

// A mode is a way to compute the steps of one configuration:
//   bf16, fp32        weights and activations in that format, nothing else
//   float8.RECIPE     bf16 with float8.recipe_name=RECIPE; so qat.SCHEME, sparsity.KIND and
//                     optimizer.NAME
//   configured        as the configuration has it
// All but the last switch off what the configuration has of float8, qat and sparsity first.

// Overrides that make a mode of a configuration. Throws UsageError where `mode` names none; whether
// there is such a recipe or scheme the configuration's reader finds out.
std::vector<std::string> mode_overrides(const std::string& mode);

// The mode that a configuration is in, by its name, or "configured" where more than one of these
// keys or another precision is at work.
std::string configured_mode(const TrainConfig& config);

}  // namespace narrowgauge::trainer

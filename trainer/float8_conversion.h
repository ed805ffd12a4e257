#pragma once

#include <memory>
#include <vector>

#include "comm/device_mesh.h"
#include "float8/config.h"
#include "float8/select_linears.h"
#include "fsdp/policies.h"
#include "nn/transformer.h"
#include "trainer/config.h"
#include "trainer/step_action.h"

namespace narrowgauge::trainer {

// Section `float8` as the library's configuration. Throws ConfigError for casts that do not go
// together.
float8::Float8LinearConfig float8_linear_config(const Float8Config& config);

// Converts the linears of `model` that section `float8` selects; none if recipe_name is none.
// Before fully_shard. Returns what was decided for each linear, for the log.
std::vector<float8::LinearDecision> convert_to_float8(const Float8Config& config,
                                                      nn::Transformer& model);

// For people, on standard error: the recipe, a line for each kind of linear, and what the fp8
// inputs save in backward.
void describe_float8(const TrainConfig& config,
                     const std::vector<float8::LinearDecision>& decisions);

// What the sharded model needs around each step. `model` outlives it.
std::unique_ptr<StepAction> make_float8_action(const Float8Config& config, nn::Transformer& model,
                                               const comm::DeviceMesh& mesh);

}  // namespace narrowgauge::trainer

#pragma once

#include <memory>
#include <vector>

#include "fsdp/fully_shard.h"
#include "nn/transformer.h"
#include "qat/prepare.h"
#include "trainer/config.h"
#include "trainer/step_action.h"

namespace narrowgauge::trainer {

// Whether section `qat` asks for anything.
bool uses_qat(const TrainConfig& config);

// Prepares the layers of `model` that section `qat` selects; none if it selects none. Before
// fully_shard. Returns what was decided for each layer, for the log. Throws ConfigError for what
// does not go together.
std::vector<qat::LayerDecision> prepare_qat(const TrainConfig& config, nn::Transformer& model);

// For people, on standard error: the scheme and a line for each kind of layer.
void describe_qat(const TrainConfig& config, const std::vector<qat::LayerDecision>& decisions);

// With qat.learned_ranges, `initialize` for weights and ranges: a range begins as initial_range of
// the same rows of its weight, which `initialize` is asked for, in the dtype of compute.
fsdp::ShardInitializer with_learned_ranges(const TrainConfig& config,
                                           const std::vector<qat::LayerDecision>& decisions,
                                           fsdp::ShardInitializer initialize);

// Enables fake quantization once qat.fake_quant_after_n_steps are done; ranges that are learned
// begin anew then, with the weights of that step. `model` outlives it.
std::unique_ptr<StepAction> make_qat_action(const TrainConfig& config, nn::Transformer& model);

}  // namespace narrowgauge::trainer

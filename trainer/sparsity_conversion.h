#pragma once

#include <memory>

#include "comm/device_mesh.h"
#include "nn/transformer.h"
#include "trainer/config.h"
#include "trainer/step_action.h"

namespace narrowgauge::trainer {

// Swaps the linears of `model` that section `sparsity` selects; none if kind is none. Before
// fully_shard. Returns how many; the first rank (`speaks`) names those that stay dense on standard
// error.
int64_t convert_to_sparse(const SparsityConfig& config, nn::Transformer& model, bool speaks);

// Sparse from start_step to end_step, dense before and after; new masks every mask_interval steps;
// at the end of training, if it ends sparse, zeros where the masks are. `num_backwards`: gradients
// that are summed to one of the optimizer. `model` is sharded and outlives it.
std::unique_ptr<StepAction> make_sparsity_action(const SparsityConfig& config,
                                                 nn::Transformer& model, int64_t num_backwards);

}  // namespace narrowgauge::trainer

#pragma once

#include <memory>

#include "comm/device_mesh.h"
#include "nn/transformer.h"
#include "trainer/config.h"
#include "trainer/step_action.h"

namespace narrowgauge::trainer {

// Holds the zeros of a pruned model (sparsity.kind pruned): elements of the linears' weights that
// are 0 when training begins, or goes on, get no gradient, so that neither its norm nor the
// optimizer's moments know of them, and are 0 again after every step, whatever the optimizer did
// (Muon mixes elements). Linears that sparsity.filter_fqns names are left alone. Throws
// std::runtime_error at the beginning of training if there is no zero to hold. `model` is sharded
// over `mesh`; both outlive it. Costs a byte a weight.
std::unique_ptr<StepAction> make_pruned_weights_action(const SparsityConfig& config,
                                                       nn::Transformer& model,
                                                       const comm::DeviceMesh& mesh);

}  // namespace narrowgauge::trainer

#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "comm/device_mesh.h"
#include "fsdp/fully_shard.h"

namespace narrowgauge::fsdp {

// The norm of all gradients as one vector, over the shards of all ranks; parameters without a
// gradient are left out. norm_type: p of the p-norm, > 0; infinity is the largest magnitude.
// applied: norms, 0-dim, of gradients that count and are gone (an optimizer applied them in
// backward). Equal on all ranks; infinite or NaN if a gradient is. Collective: one all_reduce of a
// scalar over each axis of more than one rank.
double total_grad_norm(const std::vector<ShardedParameter>& parameters,
                       const comm::DeviceMesh& mesh, double norm_type = 2.0,
                       const std::vector<at::Tensor>& applied = {});

// What gradients of joint norm `norm` are multiplied by to have at most max_norm (> 0), as
// torch.nn.utils.clip_grad_norm_ has it: max_norm / (norm + 1e-6), at most 1. 1 for an infinite or
// NaN norm: the caller can then still see which gradient broke it. An optimizer may apply it as it
// reads the gradients, which saves a pass over them.
double clip_coefficient(double norm, double max_norm);

// Both: scales the gradients in place and returns the norm before.
double clip_grad_norm(const std::vector<ShardedParameter>& parameters, double max_norm,
                      const comm::DeviceMesh& mesh, double norm_type = 2.0);

}  // namespace narrowgauge::fsdp

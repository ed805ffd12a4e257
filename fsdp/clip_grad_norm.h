#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "comm/device_mesh.h"
#include "fsdp/fully_shard.h"

namespace narrowgauge::fsdp {

// Scales all gradients so that their joint norm is at most max_norm, as
// torch.nn.utils.clip_grad_norm_ does (coefficient max_norm / (norm + 1e-6), at most 1), over the
// shards of all ranks. Parameters without a gradient are left out.
//
// norm_type: p of the p-norm, > 0; infinity is the largest magnitude. Returns the norm before
// scaling, a scalar in fp64, equal on all ranks. If it is infinite or NaN the gradients stay as
// they are, so that the caller can see which one broke it; the caller decides whether to skip the
// step. Collective: one all_reduce over the shard axis; replicas hold equal gradients and need
// none.
at::Tensor clip_grad_norm(const std::vector<ShardedParameter>& parameters, double max_norm,
                          const comm::DeviceMesh& mesh, double norm_type = 2.0);

}  // namespace narrowgauge::fsdp

#include "fsdp/clip_grad_norm.h"

#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <cmath>

namespace narrowgauge::fsdp {
namespace {

// Over all ranks' gradients; fp64, so that the sum of many shards does not depend on their number
// in the digits that fp32 keeps.
at::Tensor total_norm(const std::vector<at::Tensor>& gradients, const comm::DeviceMesh& mesh,
                      double norm_type) {
  const bool largest = std::isinf(norm_type);
  const at::Tensor total = at::zeros({}, at::kDouble);
  for (const at::Tensor& gradient : gradients) {
    if (gradient.numel() == 0) {
      continue;
    }
    const at::Tensor norm = at::linalg_vector_norm(gradient, norm_type).to(at::kDouble);
    if (largest) {
      total.copy_(total.maximum(norm));
    } else {
      total.add_(norm.pow(norm_type));
    }
  }
  if (mesh.shard_axis().size() > 1) {
    mesh.shard_axis().all_reduce(total, largest ? comm::ReduceOp::kMax : comm::ReduceOp::kSum);
  }
  return largest ? total : total.pow(1.0 / norm_type);
}

}  // namespace

at::Tensor clip_grad_norm(const std::vector<ShardedParameter>& parameters, double max_norm,
                          const comm::DeviceMesh& mesh, double norm_type) {
  TORCH_CHECK(max_norm > 0.0, "expected max_norm > 0, got ", max_norm);
  TORCH_CHECK(norm_type > 0.0, "expected norm_type > 0, got ", norm_type);
  const c10::NoGradGuard no_grad;
  std::vector<at::Tensor> gradients;
  for (const ShardedParameter& parameter : parameters) {
    if (parameter.local.grad().defined()) {
      gradients.push_back(parameter.local.grad());
    }
  }
  const at::Tensor norm = total_norm(gradients, mesh, norm_type);
  const double coefficient = max_norm / (norm.item<double>() + 1e-6);
  // False for NaN, and 0 for an infinite norm.
  if (coefficient < 1.0 && coefficient > 0.0) {
    for (at::Tensor& gradient : gradients) {
      gradient.mul_(coefficient);
    }
  }
  return norm;
}

}  // namespace narrowgauge::fsdp

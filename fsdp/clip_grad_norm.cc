#include "fsdp/clip_grad_norm.h"

#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <optional>

namespace narrowgauge::fsdp {
namespace {

std::vector<at::Tensor> gradients_of(const std::vector<ShardedParameter>& parameters) {
  std::vector<at::Tensor> gradients;
  for (const ShardedParameter& parameter : parameters) {
    if (parameter.local.grad().defined()) {
      gradients.push_back(parameter.local.grad());
    }
  }
  return gradients;
}

// `applied` and the norms of all gradients that have an element, [n] fp64, in few launches; in fp32
// where a gradient is narrower.
at::Tensor norms_of(const std::vector<at::Tensor>& gradients, double norm_type,
                    const std::vector<at::Tensor>& applied) {
  std::vector<at::Tensor> present;
  std::optional<at::ScalarType> dtype;
  for (const at::Tensor& gradient : gradients) {
    if (gradient.numel() > 0) {
      present.push_back(gradient);
      const at::ScalarType type = gradient.scalar_type();
      dtype = type == at::kHalf || type == at::kBFloat16 ? std::optional(at::kFloat) : dtype;
    }
  }
  std::vector<at::Tensor> norms = applied;
  if (!present.empty()) {
    for (const at::Tensor& norm : at::_foreach_norm(present, norm_type, dtype)) {
      norms.push_back(norm);
    }
  }
  return norms.empty() ? at::Tensor() : at::stack(norms).to(at::kDouble);
}

}  // namespace

double total_grad_norm(const std::vector<ShardedParameter>& parameters,
                       const comm::DeviceMesh& mesh, double norm_type,
                       const std::vector<at::Tensor>& applied) {
  TORCH_CHECK(norm_type > 0.0, "expected norm_type > 0, got ", norm_type);
  const c10::NoGradGuard no_grad;
  const bool largest = std::isinf(norm_type);
  // fp64, so that the sum over shards does not depend on their number in the digits that fp32
  // keeps. Where the gradients are, as the communicator can reach it there.
  const at::Device device = parameters.empty() ? at::kCPU : parameters[0].local.device();
  const at::Tensor norms = norms_of(gradients_of(parameters), norm_type, applied);
  const at::Tensor total =
      !norms.defined() ? at::zeros({}, at::TensorOptions().dtype(at::kDouble).device(device))
      : largest        ? norms.amax()
                       : norms.pow(norm_type).sum();
  if (mesh.shard_axis().size() > 1) {
    mesh.shard_axis().all_reduce(total, largest ? comm::ReduceOp::kMax : comm::ReduceOp::kSum);
  }
  if (mesh.replicate_axis().size() > 1) {
    // Hosts may sum with different numbers of threads; replicas must clip by the same bits.
    mesh.replicate_axis().all_reduce(total, comm::ReduceOp::kMax);
  }
  return (largest ? total : total.pow(1.0 / norm_type)).item<double>();
}

double clip_coefficient(double norm, double max_norm) {
  TORCH_CHECK(max_norm > 0.0, "expected max_norm > 0, got ", max_norm);
  const double coefficient = max_norm / (norm + 1e-6);
  // The comparisons are false for NaN, and the coefficient is 0 for an infinite norm.
  return coefficient < 1.0 && coefficient > 0.0 ? coefficient : 1.0;
}

double clip_grad_norm(const std::vector<ShardedParameter>& parameters, double max_norm,
                      const comm::DeviceMesh& mesh, double norm_type) {
  const double norm = total_grad_norm(parameters, mesh, norm_type);
  const double coefficient = clip_coefficient(norm, max_norm);
  if (coefficient < 1.0) {
    const c10::NoGradGuard no_grad;
    for (at::Tensor& gradient : gradients_of(parameters)) {
      gradient.mul_(coefficient);
    }
  }
  return norm;
}

}  // namespace narrowgauge::fsdp

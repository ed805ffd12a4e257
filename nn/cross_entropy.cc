#include "nn/cross_entropy.h"

#include <ATen/ops/logsumexp.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/Exception.h>

namespace narrowgauge::nn {
namespace {

void check_arguments(const at::Tensor& logits, const at::Tensor& targets) {
  TORCH_CHECK(logits.dim() == 2, "expected logits of shape [N, V], got ", logits.sizes());
  TORCH_CHECK(targets.dim() == 1 && targets.size(0) == logits.size(0),
              "expected one target for each of ", logits.size(0), " rows, got ", targets.sizes());
  TORCH_CHECK(targets.scalar_type() == at::kLong, "expected int64 targets, got ",
              targets.scalar_type());
}

}  // namespace

at::Tensor cross_entropy_sum_reference(const at::Tensor& logits, const at::Tensor& targets,
                                       int64_t ignore_index) {
  check_arguments(logits, targets);
  const auto compute = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor wide = logits.to(compute);
  const at::Tensor valid = targets.ne(ignore_index);
  const at::Tensor index = at::where(valid, targets, 0).unsqueeze(1);
  const at::Tensor row = wide.logsumexp(1).sub(wide.gather(1, index).squeeze(1));
  return at::where(valid, row, at::zeros_like(row)).sum();
}

at::Tensor cross_entropy_sum(const at::Tensor& logits, const at::Tensor& targets,
                             int64_t ignore_index) {
  return cross_entropy_sum_reference(logits, targets, ignore_index);
}

}  // namespace narrowgauge::nn

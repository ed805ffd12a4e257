#include "sparsity/supermask_linear.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

namespace narrowgauge::sparsity {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

// A factor for each block, for each element of a matrix.
at::Tensor expand_blocks(const at::Tensor& blocks, int64_t size) {
  return blocks.repeat_interleave(size, 0).repeat_interleave(size, 1);
}

at::Tensor largest_scores(const at::Tensor& scores, double sparsity_level) {
  const int64_t count = scores.numel();
  const auto dropped =
      static_cast<int64_t>(std::nearbyint(sparsity_level * static_cast<double>(count)));
  if (dropped == 0) {
    return scores.eq(scores).fill_(true);
  }
  const at::Tensor threshold = std::get<0>(scores.flatten().kthvalue(dropped + 1));
  return scores.ge(threshold);
}

struct ChooseBlocks : torch::autograd::Function<ChooseBlocks> {
  static at::Tensor forward(AutogradContext* /*context*/, const at::Tensor& scores,
                            double sparsity_level) {
    return largest_scores(scores, sparsity_level).to(scores.scalar_type());
  }
  static tensor_list backward(AutogradContext* /*context*/, const tensor_list& grads) {
    return {grads[0], at::Tensor()};
  }
};

}  // namespace

SupermaskLinear::SupermaskLinear(const nn::Linear& source, double sparsity_level,
                                 int64_t block_size)
    : nn::Linear(source), sparsity_level_(sparsity_level), block_size_(block_size) {
  TORCH_CHECK(sparsity_level >= 0 && sparsity_level < 1, "expected 0 <= sparsity_level < 1, got ",
              sparsity_level);
  TORCH_CHECK(
      block_size > 0 && spec.out_features % block_size == 0 && spec.in_features % block_size == 0,
      "expected features that ", block_size, " divides, got ", spec.out_features, " x ",
      spec.in_features);
  const int64_t columns = spec.in_features / block_size;
  const double bound = 1 / std::sqrt(static_cast<double>(columns));
  at::Tensor initial = at::empty({spec.out_features / block_size, columns}, weight.options());
  if (!initial.is_meta()) {
    initial.uniform_(-bound, bound);
  }
  add_parameter("scores", scores, initial.requires_grad_());
}

at::Tensor SupermaskLinear::block_mask() const {
  return largest_scores(scores.detach(), sparsity_level_);
}

at::Tensor SupermaskLinear::masked_weight() const {
  return weight.mul(expand_blocks(ChooseBlocks::apply(scores, sparsity_level_), block_size_));
}

at::Tensor SupermaskLinear::forward(const at::Tensor& x) {
  return at::linear(x, masked_weight(),
                    bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt);
}

std::shared_ptr<nn::Linear> SupermaskLinear::to_linear() const {
  const at::NoGradGuard no_grad;
  auto linear = std::make_shared<nn::Linear>(static_cast<const nn::Linear&>(*this));
  linear->replace_parameter("weight", masked_weight().detach().requires_grad_());
  return linear;
}

BlockSparseMatrix SupermaskLinear::to_block_sparse() const {
  const at::NoGradGuard no_grad;
  return sparsity::to_block_sparse(masked_weight(), block_size_);
}

}  // namespace narrowgauge::sparsity

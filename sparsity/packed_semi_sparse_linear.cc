#include "sparsity/packed_semi_sparse_linear.h"

#include <c10/core/GradMode.h>

#include <algorithm>
#include <memory>
#include <string_view>
#include <vector>

#include "nn/swap_linear.h"

namespace narrowgauge::sparsity {
namespace {

constexpr int64_t kRowsAtATime = 64;
constexpr int64_t kMostMatvecTokens = 8;

nn::LinearSpec without_bias(nn::LinearSpec spec) {
  spec.bias = false;
  return spec;
}

}  // namespace

bool is_semi_structured(const at::Tensor& weight) {
  if (weight.dim() != 2 || !has_semi_structured_shape(weight.size(0), weight.size(1)) ||
      !weight.is_cpu() || weight.scalar_type() != at::kBFloat16) {
    return false;
  }
  for (int64_t row = 0; row < weight.size(0); row += kRowsAtATime) {
    const int64_t count = std::min(kRowsAtATime, weight.size(0) - row);
    const at::Tensor kept = weight.narrow(0, row, count).ne(0).reshape({-1, 4}).to(at::kChar);
    if (kept.sum(1, /*keepdim=*/false, at::kChar).gt(2).any().item<bool>()) {
      return false;
    }
  }
  return true;
}

PackedSemiSparseLinear::PackedSemiSparseLinear(const nn::Linear& source)
    : nn::Linear(without_bias(source.spec), at::TensorOptions().device(at::kMeta)) {
  const at::NoGradGuard no_grad;
  TORCH_CHECK(is_semi_structured(source.weight),
              "expected a bf16 weight with two of four neighbours at most, got ",
              source.weight.dtype(), " ", source.weight.sizes(), " that is not; leave it dense");
  spec = source.spec;
  add_parameter("bias", bias, source.bias);
  packed_ = compress(source.weight.detach(), pack_mask(source.weight.detach().ne(0)));
}

at::Tensor PackedSemiSparseLinear::forward(const at::Tensor& x) {
  TORCH_CHECK(x.dim() >= 1 && x.size(-1) == spec.in_features, "expected [..., ", spec.in_features,
              "], got ", x.sizes());
  const at::Tensor matrix = x.reshape({-1, spec.in_features});
  const at::Tensor y = matrix.size(0) <= kMostMatvecTokens
                           ? semi_structured_matvec(matrix, packed_, bias)
                           : semi_structured_matmul(matrix, packed_, bias);
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = spec.out_features;
  return y.view(sizes);
}

int64_t pack_semi_structured_linears(nn::Layer& root) {
  const at::NoGradGuard no_grad;
  return nn::swap_linear(
      root,
      [](const nn::Linear& linear, std::string_view) { return is_semi_structured(linear.weight); },
      [](const nn::Linear& source) { return std::make_shared<PackedSemiSparseLinear>(source); });
}

}  // namespace narrowgauge::sparsity

// 2:4 sparsity on a GPU beside the CPU: the same masks to the last bit, the same products within
// bf16.

#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <limits>
#include <tuple>

#include "nn/linear.h"
#include "sparsity/semi_sparse_linear.h"
#include "sparsity/semi_structured.h"
#include "tests/support/numerics.h"

namespace narrowgauge::sparsity {
namespace {

using narrowgauge::testing::expect_bitwise_equal;
using narrowgauge::testing::expect_close;
using narrowgauge::testing::tolerance;

using Case = std::tuple<at::ScalarType, TileAlgorithm, int64_t, int64_t>;
class MaskOnGpu : public ::testing::TestWithParam<Case> {};

TEST_P(MaskOnGpu, EqualsTheCpus) {
  const auto [dtype, algorithm, rows, cols] = GetParam();
  for (const at::Tensor& weight :
       {at::randn({rows, cols}).to(dtype), at::randint(-3, 4, {rows, cols}).to(dtype)}) {
    const at::Tensor mask = semi_structured_mask(weight.to(at::kCUDA), algorithm);
    expect_bitwise_equal(mask.cpu(), semi_structured_mask(weight, algorithm));
    expect_bitwise_equal(apply_mask(weight.to(at::kCUDA), mask).cpu(),
                         apply_mask(weight, mask.cpu()));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, MaskOnGpu,
    ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16),
                       ::testing::Values(TileAlgorithm::kOptimal,
                                         TileAlgorithm::kLargestAbsValuesGreedy,
                                         TileAlgorithm::kLargestValuesGreedy,
                                         TileAlgorithm::kCausal1122),
                       ::testing::Values(4, 260), ::testing::Values(8, 200, 1024)));

TEST(MaskOnGpu, NanAndInfinityLeaveItValid) {
  const at::Tensor weight = at::randn({64, 64});
  weight[3][5] = std::numeric_limits<float>::quiet_NaN();
  weight[9][60] = -std::numeric_limits<float>::infinity();
  const at::Tensor mask = semi_structured_mask(weight.to(at::kCUDA), TileAlgorithm::kOptimal).cpu();
  const at::Tensor keep = unpack_mask(mask).to(at::kLong);
  EXPECT_TRUE(keep.view({64, 16, 4}).sum(2).eq(2).all().item<bool>());
  EXPECT_TRUE(keep.t().reshape({64, 16, 4}).sum(2).eq(2).all().item<bool>());
}

// The peer's own test (test_fast_sparse_training): rtol = atol = 0.1 beside the masked dense
// linear.
TEST(SemiSparseLinearOnGpu, EqualsMaskedDenseWithinThePeersTolerance) {
  for (const int64_t tokens : {64, 100, 61}) {
    nn::Linear dense({128, 256, true}, at::TensorOptions(at::kCUDA).dtype(at::kBFloat16));
    {
      const at::NoGradGuard no_grad;
      dense.weight.normal_();
      dense.bias.normal_();
    }
    SemiSparseLinear sparse(dense, {});
    const at::Tensor x = at::randn({tokens, 128}).to(at::kCUDA, at::kBFloat16).requires_grad_();
    const at::Tensor grad = at::randn({tokens, 256}).to(at::kCUDA, at::kBFloat16);
    const at::Tensor y = sparse(x);
    y.backward(grad);
    const at::Tensor masked = apply_mask(dense.weight.detach().cpu(), sparse.mask()).to(at::kFloat);
    const at::Tensor x32 = x.detach().cpu().to(at::kFloat);
    const at::Tensor grad32 = grad.cpu().to(at::kFloat);
    const auto close = [](const at::Tensor& got, const at::Tensor& expected) {
      return got.detach().cpu().to(at::kFloat).allclose(expected, 0.1, 0.1);
    };
    EXPECT_TRUE(close(y, at::linear(x32, masked, dense.bias.detach().cpu().to(at::kFloat))));
    EXPECT_TRUE(close(x.grad(), at::mm(grad32, masked)));
    EXPECT_TRUE(close(dense.weight.grad(), at::mm(grad32.t(), x32)));
    EXPECT_TRUE(close(dense.bias.grad(), grad32.sum(0)));
  }
}

}  // namespace
}  // namespace narrowgauge::sparsity

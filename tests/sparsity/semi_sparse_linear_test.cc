#include "sparsity/semi_sparse_linear.h"

#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <memory>

#include "tests/support/numerics.h"

namespace narrowgauge::sparsity {
namespace {

using narrowgauge::testing::expect_bitwise_equal;

// [32 -> 16] with a bias unless told, normally distributed.
struct RandomLinear : nn::Linear {
  explicit RandomLinear(at::ScalarType dtype, bool bias = true)
      : nn::Linear({32, 16, bias}, at::TensorOptions(dtype)) {
    const at::NoGradGuard no_grad;
    for (at::Tensor& parameter : parameters()) {
      parameter.normal_();
    }
  }
};

struct Gradients {
  at::Tensor y, x, weight, bias;
};

Gradients run(nn::Linear& linear, const at::Tensor& input, const at::Tensor& grad) {
  const at::Tensor x = input.detach().clone().requires_grad_();
  linear.zero_grad();
  const at::Tensor y = linear(x);
  y.backward(grad);
  return {y.detach(), x.grad(), linear.weight.grad().clone(),
          linear.bias.defined() ? linear.bias.grad().clone() : at::Tensor()};
}

// The same products on the masked weight: gradients are equal to the last bit.
TEST(SemiSparseLinear, EqualsMaskedDenseExactlyInFp32) {
  for (const GradientType gradient : {GradientType::kStraightThrough, GradientType::kMasked}) {
    const RandomLinear dense(at::kFloat);
    SemiSparseLinear sparse(dense, {TileAlgorithm::kOptimal, gradient, 0});
    const at::Tensor x = at::randn({24, 32});
    const at::Tensor grad = at::randn({24, 16});
    const Gradients got = run(sparse, x, grad);
    const at::Tensor masked = apply_mask(dense.weight.detach(), sparse.mask());
    expect_bitwise_equal(got.y, at::linear(x, masked, dense.bias.detach()));
    expect_bitwise_equal(got.x, at::mm(grad, masked));
    const at::Tensor grad_weight = at::mm(grad.t(), x);
    expect_bitwise_equal(got.weight, gradient == GradientType::kMasked
                                         ? apply_mask(grad_weight, sparse.mask())
                                         : grad_weight);
    expect_bitwise_equal(got.bias, grad.sum(0));
  }
}

// A dense run's checkpoint that goes on sparse, at a step at which mask_interval asks for no new
// mask.
TEST(SemiSparseLinear, ALayerWithoutAMaskMakesOne) {
  const RandomLinear dense(at::kFloat);
  SemiSparseLinear sparse(dense, {});
  sparse.take_mask();
  sparse.set_refresh_mask(false);
  sparse(at::randn({4, 32}));
  expect_bitwise_equal(sparse.mask(),
                       semi_structured_mask(dense.weight.detach(), TileAlgorithm::kOptimal));
}

// The peer's own test (test_fast_sparse_training): rtol = atol = 0.1 in half precision.
TEST(SemiSparseLinear, EqualsMaskedDenseWithinThePeersToleranceInBfloat16) {
  const RandomLinear dense(at::kBFloat16);
  SemiSparseLinear sparse(dense, {});
  const at::Tensor x = at::randn({2, 12, 32}).to(at::kBFloat16);
  const at::Tensor grad = at::randn({2, 12, 16}).to(at::kBFloat16);
  const Gradients got = run(sparse, x, grad);
  EXPECT_EQ(got.y.sizes(), grad.sizes());
  const at::Tensor masked = apply_mask(dense.weight.detach(), sparse.mask()).to(at::kFloat);
  const at::Tensor x32 = x.to(at::kFloat);
  const at::Tensor grad32 = grad.to(at::kFloat);
  EXPECT_TRUE(got.y.to(at::kFloat)
                  .allclose(at::linear(x32, masked, dense.bias.detach().to(at::kFloat)), 0.1, 0.1));
  EXPECT_TRUE(got.x.to(at::kFloat).allclose(grad32.matmul(masked), 0.1, 0.1));
  EXPECT_TRUE(got.weight.to(at::kFloat)
                  .allclose(at::mm(grad32.view({-1, 16}).t(), x32.view({-1, 32})), 0.1, 0.1));
}

TEST(SemiSparseLinear, SrSteDecayDrawsPrunedWeightsToZero) {
  const RandomLinear dense(at::kFloat, false);
  SemiSparseLinear sparse(dense, {TileAlgorithm::kOptimal, GradientType::kStraightThrough, 0.5});
  const at::Tensor x = at::randn({8, 32});
  const at::Tensor grad = at::randn({8, 16});
  const Gradients got = run(sparse, x, grad);
  const at::Tensor weight = dense.weight.detach();
  const at::Tensor pruned = weight.sub(apply_mask(weight, sparse.mask()));
  EXPECT_TRUE(got.weight.allclose(at::mm(grad.t(), x).add(pruned, 0.5), 1e-5, 1e-5));
}

TEST(SemiSparseLinear, KeepsItsMaskUntilItIsToRefreshIt) {
  SemiSparseLinear sparse(RandomLinear(at::kFloat), {});
  const at::Tensor x = at::randn({8, 32});
  sparse(x);
  const at::Tensor first = sparse.mask().clone();
  {
    const at::NoGradGuard no_grad;
    sparse.weight.normal_();
  }
  sparse(x);
  expect_bitwise_equal(sparse.mask(), first);
  sparse.set_refresh_mask(true);
  sparse(x);
  EXPECT_FALSE(sparse.mask().equal(first));
  expect_bitwise_equal(sparse.mask(),
                       semi_structured_mask(sparse.weight.detach(), TileAlgorithm::kOptimal));
}

TEST(SemiSparseLinear, IsAPlainLinearWhileNotSparse) {
  RandomLinear dense(at::kFloat);
  SemiSparseLinear sparse(dense, {});
  sparse.set_sparse(false);
  const at::Tensor x = at::randn({8, 32});
  expect_bitwise_equal(sparse(x), dense(x));
}

TEST(SemiSparseActivationLinear, MasksTheInputAndPassesItsGradientThrough) {
  for (const int64_t tokens : {1, 6, 8}) {
    const RandomLinear dense(at::kFloat);
    SemiSparseActivationLinear sparse(dense, TileAlgorithm::kOptimal);
    const at::Tensor x = at::randn({tokens, 32});
    const at::Tensor grad = at::randn({tokens, 16});
    const Gradients got = run(sparse, x, grad);
    const int64_t padded = (tokens + 3) / 4 * 4;
    at::Tensor filled = at::zeros({padded, 32});
    filled.narrow(0, 0, tokens).copy_(x);
    const at::Tensor masked =
        apply_mask(filled, semi_structured_mask(filled, TileAlgorithm::kOptimal))
            .narrow(0, 0, tokens);
    expect_bitwise_equal(got.y, at::linear(masked, dense.weight.detach(), dense.bias.detach()));
    expect_bitwise_equal(got.x, at::mm(grad, dense.weight.detach()));
    expect_bitwise_equal(got.weight, at::mm(grad.t(), masked));
  }
}

TEST(SemiSparse, GradientsWithoutABias) {
  const RandomLinear dense(at::kFloat, false);
  SemiSparseLinear weight_sparse(dense, {});
  SemiSparseActivationLinear input_sparse(dense, TileAlgorithm::kOptimal);
  const at::Tensor x = at::randn({8, 32});
  const at::Tensor grad = at::randn({8, 16});
  expect_bitwise_equal(run(weight_sparse, x, grad).weight, at::mm(grad.t(), x));
  expect_bitwise_equal(run(input_sparse, x, grad).x, at::mm(grad, dense.weight.detach()));
}

class Pair : public nn::Layer {
 public:
  Pair() {
    add_child("wide", wide, std::make_shared<nn::Linear>(nn::LinearSpec{16, 8}, at::kFloat));
    add_child("odd", odd, std::make_shared<nn::Linear>(nn::LinearSpec{12, 8}, at::kFloat));
  }
  std::shared_ptr<nn::Linear> wide, odd;
};

TEST(SwapSemiSparse, SwapsWhatCanBeMaskedAndBack) {
  Pair pair;
  const at::Tensor weight = pair.wide->weight;
  EXPECT_EQ(swap_linear_with_semi_sparse_linear(pair, {}), 1);
  EXPECT_NE(dynamic_cast<SemiSparseLinear*>(pair.wide.get()), nullptr);
  EXPECT_EQ(dynamic_cast<SemiSparseLinear*>(pair.odd.get()), nullptr);
  EXPECT_TRUE(pair.wide->weight.is_same(weight));
  EXPECT_EQ(swap_semi_sparse_linear_with_linear(pair), 1);
  EXPECT_EQ(dynamic_cast<SemiSparseLinear*>(pair.wide.get()), nullptr);
  EXPECT_TRUE(pair.wide->weight.is_same(weight));
}

TEST(SwapSemiSparse, TheFilterDecides) {
  Pair pair;
  EXPECT_EQ(swap_linear_with_semi_sparse_linear(
                pair, {}, [](const nn::Linear&, std::string_view fqn) { return fqn != "wide"; }),
            0);
}

TEST(SwapSemiSparse, ALinearThatCannotBeMaskedIsRefusedByName) {
  const nn::Linear odd({12, 8}, at::kFloat);
  EXPECT_THROW(SemiSparseLinear(odd, {}), c10::Error);
}

}  // namespace
}  // namespace narrowgauge::sparsity

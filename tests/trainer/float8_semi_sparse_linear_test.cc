#include "trainer/float8_semi_sparse_linear.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "tests/support/numerics.h"

namespace narrowgauge::trainer {
namespace {

using float8::Float8LinearConfig;
using narrowgauge::testing::expect_bitwise_equal;
using sparsity::GradientType;
using sparsity::SemiSparseOptions;
using sparsity::TileAlgorithm;

struct RandomLinear : nn::Linear {
  explicit RandomLinear(at::ScalarType dtype)
      : nn::Linear({64, 48, /*bias=*/true}, at::TensorOptions(dtype)) {
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
  return {y.detach(), x.grad(), linear.weight.grad().clone(), linear.bias.grad().clone()};
}

// A Float8Linear whose parameter is `weight`.
float8::Float8Linear float8_of(const nn::Linear& source, const at::Tensor& weight,
                               const Float8LinearConfig& config) {
  nn::Linear linear(source);
  linear.replace_parameter("weight", weight);
  linear.replace_parameter("bias", source.bias.detach().clone());
  linear.weight.set_requires_grad(true);
  linear.bias.set_requires_grad(true);
  return {linear, config};
}

class EveryRecipe
    : public ::testing::TestWithParam<std::tuple<std::string, at::ScalarType, GradientType>> {};

TEST_P(EveryRecipe, IsFloat8OfTheMaskedWeight) {
  const auto [recipe, dtype, gradient] = GetParam();
  const auto config = Float8LinearConfig::from_recipe_name(recipe);
  const RandomLinear source(dtype);
  // The largest elements of some tiles are pruned ones: scales must not see them.
  Float8SemiSparseLinear sparse(source, config, {TileAlgorithm::kCausal1122, gradient, 0});
  const at::Tensor x = at::randn({2, 16, 64}).to(dtype);
  const at::Tensor grad = at::randn({2, 16, 48}).to(dtype);
  const Gradients got = run(sparse, x, grad);
  const at::Tensor masked = sparsity::apply_mask(source.weight.detach(), sparse.mask());
  EXPECT_LE(masked.ne(0).to(at::kFloat).mean().item<double>(), 0.5);
  float8::Float8Linear reference = float8_of(source, masked, config);
  const Gradients expected = run(reference, x, grad);
  expect_bitwise_equal(got.y, expected.y);
  expect_bitwise_equal(got.x, expected.x);
  expect_bitwise_equal(got.weight, gradient == GradientType::kMasked
                                       ? sparsity::apply_mask(expected.weight, sparse.mask())
                                       : expected.weight);
  expect_bitwise_equal(got.bias, expected.bias);
  const at::NoGradGuard no_grad;
  expect_bitwise_equal(sparse(x), reference(x));
}

INSTANTIATE_TEST_SUITE_P(
    Recipes, EveryRecipe,
    ::testing::Combine(::testing::Values("tensorwise", "rowwise", "rowwise_with_gw_hp", "delayed"),
                       ::testing::Values(at::kFloat, at::kBFloat16),
                       ::testing::Values(GradientType::kStraightThrough, GradientType::kMasked)));

TEST(Float8SemiSparseLinear, IsAFloat8LinearWhileNotSparse) {
  const auto config = Float8LinearConfig::from_recipe_name("rowwise");
  const RandomLinear source(at::kBFloat16);
  Float8SemiSparseLinear sparse(source, config, {});
  sparse.set_sparse(false);
  const at::Tensor x = at::randn({16, 64}).to(at::kBFloat16);
  const at::Tensor grad = at::randn({16, 48}).to(at::kBFloat16);
  float8::Float8Linear reference = float8_of(source, source.weight.detach().clone(), config);
  const Gradients got = run(sparse, x, grad);
  const Gradients expected = run(reference, x, grad);
  expect_bitwise_equal(got.y, expected.y);
  expect_bitwise_equal(got.weight, expected.weight);
}

TEST(Float8SemiSparseLinear, SrSteDecayIsAddedOnceInHighPrecision) {
  const auto config = Float8LinearConfig::from_recipe_name("tensorwise");
  const RandomLinear source(at::kFloat);
  const at::Tensor x = at::randn({16, 64});
  const at::Tensor grad = at::randn({16, 48});
  Float8SemiSparseLinear plain(source, config, {});
  const Gradients without = run(plain, x, grad);
  Float8SemiSparseLinear decaying(source, config,
                                  {TileAlgorithm::kOptimal, GradientType::kStraightThrough, 0.5});
  const Gradients with = run(decaying, x, grad);
  const at::Tensor weight = source.weight.detach();
  const at::Tensor pruned = weight.sub(sparsity::apply_mask(weight, plain.mask()));
  EXPECT_TRUE(with.weight.allclose(without.weight.add(pruned, 0.5), 1e-5, 1e-5));
}

}  // namespace
}  // namespace narrowgauge::trainer

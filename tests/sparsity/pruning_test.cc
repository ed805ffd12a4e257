#include "sparsity/pruning.h"

#include <ATen/ops/eye.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/support/numerics.h"

namespace narrowgauge::sparsity {
namespace {

using narrowgauge::testing::expect_bitwise_equal;

double share_kept(const at::Tensor& mask) { return mask.to(at::kDouble).mean().item<double>(); }

// |X (W - V)^T|^2 for inputs whose Gram matrix is `gram`.
double output_error(const at::Tensor& weight, const at::Tensor& pruned, const at::Tensor& gram) {
  const at::Tensor delta = weight.sub(pruned).to(at::kDouble);
  return at::mm(delta, gram.to(at::kDouble)).mul(delta).sum().item<double>();
}

at::Tensor pruned_by(const at::Tensor& mask, const at::Tensor& weight) {
  return at::where(mask, weight, at::zeros_like(weight));
}

// Inputs of very different sizes that depend on each other, as a layer's are.
at::Tensor correlated_inputs(int64_t tokens, int64_t features) {
  const at::Tensor mixing = at::randn({features, features}).add(at::eye(features), 4);
  return at::mm(at::randn({tokens, features}), mixing).mul(at::randn({features}).exp());
}

TEST(PruningPattern, IsAShareOrKeepOfGroup) {
  EXPECT_DOUBLE_EQ(parse_pruning_pattern("0.25").sparsity, 0.25);
  EXPECT_EQ(parse_pruning_pattern("2:4").keep, 2);
  EXPECT_EQ(parse_pruning_pattern("4:8").group, 8);
  EXPECT_EQ(to_string(parse_pruning_pattern("4:8")), "4:8");
  EXPECT_EQ(to_string(parse_pruning_pattern("0.5")), "0.5");
  for (const char* text :
       {"", "1", "-0.1", "nan", "4:4", "0:4", "2:", ":4", "2:4:8", "half", "2:4 "}) {
    EXPECT_THROW(parse_pruning_pattern(text), c10::Error) << text;
  }
}

TEST(MagnitudeMask, KeepsTheLargestOfTheMatrixOrOfEachGroup) {
  const at::Tensor weight = at::tensor({1.0, -8.0, 2.0, 3.0, 0.1, 0.2, -0.3, 0.4}).view({2, 4});
  expect_bitwise_equal(magnitude_mask(weight, parse_pruning_pattern("0.5")),
                       at::tensor({1, 1, 1, 1, 0, 0, 0, 0}).view({2, 4}).to(at::kBool));
  expect_bitwise_equal(magnitude_mask(weight, parse_pruning_pattern("2:4")),
                       at::tensor({0, 1, 0, 1, 0, 0, 1, 1}).view({2, 4}).to(at::kBool));
}

TEST(WandaMask, IsThePapersMetricWithinEachRow) {
  const at::Tensor weight = at::tensor({1.0, -2.0, 3.0, -4.0, 4.0, 3.0, 2.0, 1.0}).view({2, 4});
  const at::Tensor norm = at::tensor({10.0, 1.0, 1.0, 1.0});
  // Row 0: 10, 2, 3, 4; row 1: 40, 3, 2, 1.
  expect_bitwise_equal(wanda_mask(weight, norm, parse_pruning_pattern("0.5")),
                       at::tensor({1, 0, 0, 1, 1, 1, 0, 0}).view({2, 4}).to(at::kBool));
}

TEST(WandaMask, EveryRowLosesTheSameShare) {
  const at::Tensor mask =
      wanda_mask(at::randn({16, 64}), at::randn({64}).abs(), parse_pruning_pattern("0.5"));
  EXPECT_TRUE(mask.sum(1).eq(32).all().item<bool>());
}

class SparseGptTest : public ::testing::TestWithParam<const char*> {};

TEST_P(SparseGptTest, HasThePatternAndASmallerErrorThanWandaAndMagnitude) {
  const PruningPattern pattern = parse_pruning_pattern(GetParam());
  const at::Tensor weight = at::randn({48, 256});
  const at::Tensor x = correlated_inputs(1024, 256);
  const at::Tensor gram = at::mm(x.t(), x);
  const at::Tensor pruned = sparsegpt(weight, gram, pattern);
  const at::Tensor kept = pruned.ne(0);
  if (pattern.is_unstructured()) {
    EXPECT_NEAR(share_kept(kept), 1 - pattern.sparsity, 1e-3);
  } else {
    EXPECT_LE(kept.view({-1, pattern.group}).sum(1).max().item<int64_t>(), pattern.keep);
  }
  const double error = output_error(weight, pruned, gram);
  const double wanda = output_error(
      weight, pruned_by(wanda_mask(weight, gram.diagonal().sqrt(), pattern), weight), gram);
  const double magnitude =
      output_error(weight, pruned_by(magnitude_mask(weight, pattern), weight), gram);
  EXPECT_LT(error, 0.8 * wanda);
  EXPECT_LT(wanda, 0.8 * magnitude);
}

INSTANTIATE_TEST_SUITE_P(Patterns, SparseGptTest, ::testing::Values("0.5", "0.7", "2:4", "4:8"));

// With nothing to prune there is no error to move.
TEST(SparseGpt, ChangesNothingAtSparsityZero) {
  const at::Tensor weight = at::randn({8, 64});
  const at::Tensor x = correlated_inputs(256, 64);
  expect_bitwise_equal(sparsegpt(weight, at::mm(x.t(), x), parse_pruning_pattern("0")), weight);
}

// With independent inputs nothing can make up for a pruned weight: it is magnitude pruning.
TEST(SparseGpt, LeavesTheOthersAloneIfInputsAreIndependent) {
  const at::Tensor weight = at::randn({8, 64});
  const PruningPattern pattern = parse_pruning_pattern("2:4");
  expect_bitwise_equal(sparsegpt(weight, at::eye(64), pattern),
                       pruned_by(magnitude_mask(weight, pattern), weight));
}

TEST(SparseGpt, InputsThatAreAlwaysZeroLoseTheirWeights) {
  const at::Tensor x = correlated_inputs(256, 64);
  x.select(1, 5).zero_();
  const at::Tensor pruned =
      sparsegpt(at::randn({8, 64}), at::mm(x.t(), x), parse_pruning_pattern("0.5"));
  EXPECT_TRUE(pruned.select(1, 5).eq(0).all().item<bool>());
  EXPECT_TRUE(pruned.isfinite().all().item<bool>());
}

// A block of no columns would never come to the end of them.
TEST(SparseGpt, BlocksWithoutColumnsAreRefused) {
  for (const char* pattern : {"0.5", "2:4"}) {
    for (const int64_t block_size : {0, -4}) {
      SparseGptOptions options;
      options.block_size = block_size;
      try {
        sparsegpt(at::randn({8, 64}), at::eye(64), parse_pruning_pattern(pattern), options);
        FAIL() << pattern << " with a block_size of " << block_size;
      } catch (const c10::Error& error) {
        EXPECT_NE(std::string(error.what())
                      .find("block_size of at least 1, got " + std::to_string(block_size)),
                  std::string::npos)
            << error.what();
      }
    }
  }
}

TEST(SparseGpt, BlocksThatTheGroupDoesNotDivideAreRefused) {
  SparseGptOptions options;
  options.block_size = 6;
  EXPECT_THROW(sparsegpt(at::randn({8, 64}), at::eye(64), parse_pruning_pattern("2:4"), options),
               c10::Error);
}

TEST(SparseGpt, AnIndefiniteGramMatrixIsRefused) {
  EXPECT_THROW(sparsegpt(at::randn({8, 64}), at::eye(64).mul(-1.0), parse_pruning_pattern("0.5")),
               c10::Error);
}

}  // namespace
}  // namespace narrowgauge::sparsity

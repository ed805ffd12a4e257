#include "nn/cross_entropy.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <limits>
#include <tuple>

#include "tests/support/numerics.h"

namespace narrowgauge::nn {
namespace {

using narrowgauge::testing::expect_bitwise_equal;
using narrowgauge::testing::expect_close;
using narrowgauge::testing::tolerance;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class CrossEntropyTest
    : public ::testing::TestWithParam<std::tuple<at::ScalarType, int64_t, int64_t>> {};

TEST_P(CrossEntropyTest, MatchesFp64ForwardAndBackward) {
  const auto [dtype, rows, vocab] = GetParam();
  const at::Tensor logits = at::randn({rows, vocab}).mul(5).to(dtype).requires_grad_();
  const at::Tensor targets = at::randint(vocab, {rows}, at::kLong);
  if (rows > 2) {
    targets[1] = -100;
  }
  const at::Tensor loss = cross_entropy_sum(logits, targets);
  loss.mul(0.25).backward();
  const at::Tensor logits64 = logits.detach().to(at::kDouble).requires_grad_();
  const at::Tensor loss64 = cross_entropy_sum_reference(logits64, targets);
  loss64.mul(0.25).backward();
  EXPECT_EQ(loss.dim(), 0);
  EXPECT_EQ(loss.scalar_type(), at::kFloat);
  // Statistics are fp32 whatever the logits. The error of a row's ln sum is relative to 1.
  expect_close(loss, loss64, tolerance(at::kFloat, vocab), at::full({}, rows));
  // At the target the gradient is softmax - 1: its error is relative to 1, however small it is.
  const at::Tensor magnitude = logits64.grad().abs();
  for (int64_t row = 0; row < rows; ++row) {
    if (const auto target = targets[row].item<int64_t>(); target >= 0) {
      magnitude[row][target].add_(0.25);
    }
  }
  expect_close(logits.grad(), logits64.grad(), tolerance(dtype, vocab + 32), magnitude);
}

INSTANTIATE_TEST_SUITE_P(Shapes, CrossEntropyTest,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16),
                                            ::testing::Values(1, 3, 65),
                                            ::testing::Values(1, 2, 16, 217, 4096)));

TEST(CrossEntropy, LargeLogitsDoNotOverflow) {
  const at::Tensor logits = at::tensor({1e4F, 1e4F, -1e4F, -1e30F}).view({1, 4});
  EXPECT_NEAR(cross_entropy_sum(logits, at::tensor({1L})).item<double>(), 0.69314718, 1e-3);
  EXPECT_EQ(cross_entropy_sum(logits, at::tensor({2L})).item<float>(), 20000.69314718F);
}

TEST(CrossEntropy, IgnoredRowsAddNothingEvenWithNan) {
  const at::Tensor logits = at::full({3, 5}, std::numeric_limits<float>::quiet_NaN());
  logits[1].fill_(0.0F);
  logits.requires_grad_();
  const at::Tensor loss = cross_entropy_sum(logits, at::tensor({-100L, 2L, -100L}));
  loss.backward();
  EXPECT_NEAR(loss.item<double>(), std::log(5.0), 1e-6);
  expect_bitwise_equal(logits.grad()[0], at::zeros({5}));
  expect_bitwise_equal(logits.grad()[2], at::zeros({5}));
}

TEST(CrossEntropy, NoValidRowOrNoRowGivesZero) {
  EXPECT_EQ(cross_entropy_sum(at::randn({2, 4}), at::tensor({-1L, -1L}), -1).item<float>(), 0.0F);
  EXPECT_EQ(cross_entropy_sum(at::empty({0, 4}), at::empty({0}, at::kLong)).item<float>(), 0.0F);
}

TEST(CrossEntropy, NanReachesTheLossAndMinusInfinityIsImpossible) {
  at::Tensor logits = at::zeros({1, 20});
  logits[0][11] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(cross_entropy_sum(logits, at::tensor({3L})).item<float>()));
  logits[0][11] = -kInfinity;
  EXPECT_NEAR(cross_entropy_sum(logits, at::tensor({3L})).item<double>(), std::log(19.0), 1e-6);
  EXPECT_EQ(cross_entropy_sum(logits, at::tensor({11L})).item<float>(), kInfinity);
}

TEST(CrossEntropy, TargetOutOfRangeIsNamed) {
  for (const int64_t target : {int64_t{7}, int64_t{-1}}) {
    try {
      cross_entropy_sum(at::randn({3, 7}), at::tensor({0L, 6L, target}));
      ADD_FAILURE() << "target " << target << " was accepted";
    } catch (const c10::Error& error) {
      const std::string text = error.what_without_backtrace();
      EXPECT_NE(text.find(std::to_string(target) + " at position 2"), std::string::npos) << text;
    }
  }
  EXPECT_THROW(cross_entropy_sum(at::randn({3, 7}), at::tensor({0L, 1L})), c10::Error);
}

TEST(CrossEntropy, BitsDoNotDependOnTheNumberOfThreads) {
  const at::Tensor logits = at::randn({500, 217}).to(at::kBFloat16);
  const at::Tensor targets = at::randint(217, {500}, at::kLong);
  const int threads_before = at::get_num_threads();
  at::set_num_threads(1);
  const at::Tensor one = cross_entropy_sum(logits, targets);
  at::set_num_threads(3);
  const at::Tensor three = cross_entropy_sum(logits, targets);
  at::set_num_threads(threads_before);
  expect_bitwise_equal(three, one);
}

}  // namespace
}  // namespace narrowgauge::nn

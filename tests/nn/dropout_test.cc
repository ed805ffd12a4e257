// Masks as a pure function of (key, step, element): their statistics, that parts are slices of the
// whole, and gradients beside autograd's through a product with the mask.

#include "nn/dropout.h"

#include <ATen/Parallel.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/numerics.h"

namespace narrowgauge::nn {
namespace {

using narrowgauge::testing::expect_bitwise_equal;
using narrowgauge::testing::expect_close;

DropoutMask mask_of(double p, int64_t step = 3, int64_t first_element = 0) {
  DropoutMask mask;
  mask.p = p;
  mask.key = dropout_key(7, "layers.0.mlp.down_proj");
  mask.step = step;
  mask.first_element = first_element;
  return mask;
}

// The factor of each element.
at::Tensor factors(const DropoutMask& mask, int64_t count, at::ScalarType dtype = at::kFloat) {
  return dropout(at::ones({count}, dtype), mask);
}

TEST(Dropout, KeepsTheMeanAndDropsTheShare) {
  constexpr int64_t kCount = 1 << 20;
  for (const double p : {0.05, 0.1, 0.5, 0.9}) {
    const at::Tensor x = factors(mask_of(p), kCount);
    // Five standard deviations of a binomial share.
    const double bound = 5.0 * std::sqrt(p * (1.0 - p) / kCount);
    EXPECT_NEAR(x.eq(0.0).to(at::kDouble).mean().item<double>(), p, bound);
    EXPECT_NEAR(x.to(at::kDouble).mean().item<double>(), 1.0, bound / (1.0 - p));
    EXPECT_NEAR(x.to(at::kDouble).var().item<double>(), p / (1.0 - p),
                10.0 * bound / std::pow(1.0 - p, 2));
    EXPECT_FLOAT_EQ(x.max().item<float>(), static_cast<float>(1.0 / (1.0 - p)));
  }
}

TEST(Dropout, NeighboursStepsAndNamesAreIndependent) {
  constexpr int64_t kCount = 1 << 18;
  const auto correlation = [](const at::Tensor& a, const at::Tensor& b) {
    return a.sub(1.0).mul(b.sub(1.0)).mean().item<double>();  // at p = 0.5 a variance is 1
  };
  const at::Tensor x = factors(mask_of(0.5), kCount);
  DropoutMask other = mask_of(0.5);
  other.key = dropout_key(7, "layers.1.mlp.down_proj");
  DropoutMask seed = mask_of(0.5);
  seed.key = dropout_key(8, "layers.0.mlp.down_proj");
  const double bound = 5.0 / std::sqrt(kCount);
  EXPECT_NEAR(correlation(x, factors(mask_of(0.5, 4), kCount)), 0.0, bound);
  EXPECT_NEAR(correlation(x, factors(other, kCount)), 0.0, bound);
  EXPECT_NEAR(correlation(x, factors(seed, kCount)), 0.0, bound);
  for (const int64_t distance : {1, 2, 4, 1024}) {
    EXPECT_NEAR(correlation(x.slice(0, distance), x.slice(0, 0, kCount - distance)), 0.0, bound);
  }
}

TEST(Dropout, PartsAreSlicesOfTheWhole) {
  const at::Tensor whole = at::randn({6000});
  const at::Tensor expected = dropout(whole, mask_of(0.3));
  for (const int64_t first : {0, 1, 2, 3, 4, 511, 512, 2049, 5999}) {
    for (const int64_t count : {1, 5, 1200}) {
      const at::Tensor part = whole.slice(0, first, first + count);
      expect_bitwise_equal(dropout(part, mask_of(0.3, 3, first)),
                           expected.slice(0, first, first + count).contiguous());
    }
  }
  EXPECT_EQ(dropout(whole.slice(0, 0, 0), mask_of(0.3)).numel(), 0);
  const int64_t far = (int64_t{1} << 40) + 3;
  expect_bitwise_equal(factors(mask_of(0.3, 3, far + 5), 10),
                       factors(mask_of(0.3, 3, far), 15).slice(0, 5, 15).contiguous());
}

TEST(Dropout, BitsDoNotDependOnTheNumberOfThreads) {
  const int threads_before = at::get_num_threads();
  const at::Tensor x = at::randn({100003});
  at::set_num_threads(1);
  const at::Tensor one = dropout(x, mask_of(0.2));
  at::set_num_threads(3);
  const at::Tensor three = dropout(x, mask_of(0.2));
  at::set_num_threads(threads_before);
  expect_bitwise_equal(three, one);
}

TEST(Dropout, Bf16DropsTheSameElements) {
  const at::Tensor x = at::randn({1000}).to(at::kBFloat16);
  expect_bitwise_equal(dropout(x, mask_of(0.3)),
                       dropout(x.to(at::kFloat), mask_of(0.3)).to(at::kBFloat16));
}

TEST(Dropout, NothingIsDroppedAtZero) {
  const at::Tensor x = at::randn({100});
  expect_bitwise_equal(dropout(x, mask_of(0.0)), x);
}

TEST(Dropout, TheDifferenceIsThatToTheInput) {
  const at::Tensor x = at::randn({1000});
  DropoutMask difference = mask_of(0.3);
  difference.is_difference = true;
  expect_close(dropout(x, difference), dropout(x, mask_of(0.3)).sub(x), 1e-6);
}

TEST(Dropout, OtherSharesAndDtypesAreRefused) {
  const at::Tensor x = at::randn({4});
  EXPECT_THROW(dropout(x, mask_of(1.0)), c10::Error);
  EXPECT_THROW(dropout(x, mask_of(-0.1)), c10::Error);
  EXPECT_THROW(dropout(x, mask_of(0.1, -1)), c10::Error);
  EXPECT_THROW(dropout(x.to(at::kDouble), mask_of(0.1)), c10::Error);
  EXPECT_THROW(dropout_linear(x, at::randn({2, 3}), mask_of(0.1)), c10::Error);
}

TEST(DropoutLinear, HasTheGradientsOfItsMask) {
  for (const bool is_difference : {false, true}) {
    DropoutMask mask = mask_of(0.4, 5, 12);
    mask.is_difference = is_difference;
    const at::Tensor x = at::randn({2, 9, 10}).requires_grad_();
    const at::Tensor weight = at::randn({6, 10}).requires_grad_();
    const at::Tensor grad = at::randn({2, 9, 6});
    const at::Tensor y = dropout_linear(x, weight, mask);
    y.backward(grad);
    const at::Tensor x2 = x.detach().clone().requires_grad_();
    const at::Tensor weight2 = weight.detach().clone().requires_grad_();
    const at::Tensor factor = dropout(at::ones({2, 9, 10}), mask);
    const at::Tensor expected = at::linear(x2.mul(factor), weight2);
    expected.backward(grad);
    expect_close(y.detach(), expected.detach(), 1e-5);
    expect_close(x.grad(), x2.grad(), 1e-5);
    expect_close(weight.grad(), weight2.grad(), 1e-5);
  }
}

TEST(DropoutLinear, AFrozenInputOrWeightHasNoGradient) {
  const at::Tensor x = at::randn({9, 10});
  const at::Tensor weight = at::randn({6, 10}).requires_grad_();
  dropout_linear(x, weight, mask_of(0.4)).sum().backward();
  EXPECT_TRUE(weight.grad().defined());
  EXPECT_FALSE(x.grad().defined());
  const at::Tensor trained = at::randn({9, 10}).requires_grad_();
  const at::Tensor frozen = at::randn({6, 10});
  dropout_linear(trained, frozen, mask_of(0.4)).sum().backward();
  EXPECT_TRUE(trained.grad().defined());
  EXPECT_FALSE(frozen.grad().defined());
}

}  // namespace
}  // namespace narrowgauge::nn

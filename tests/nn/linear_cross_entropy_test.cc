#include "nn/linear_cross_entropy.h"

#include <ATen/ops/linear.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <tuple>

#include "nn/cross_entropy.h"
#include "nn/loss_chunk.h"
#include "nn/output_head.h"
#include "tests/support/live_bytes.h"
#include "tests/support/numerics.h"

namespace narrowgauge::nn {
namespace {

using narrowgauge::testing::expect_bitwise_equal;

struct Outcome {
  at::Tensor loss;
  at::Tensor grad_x;
  at::Tensor grad_weight;
};

using Loss = std::function<at::Tensor(const at::Tensor& x, const at::Tensor& weight)>;

Outcome run(const Loss& loss, const at::Tensor& x, const at::Tensor& weight) {
  const at::Tensor input = x.detach().clone().requires_grad_();
  const at::Tensor parameter = weight.detach().clone().requires_grad_();
  const at::Tensor value = loss(input, parameter);
  value.backward();
  return {value.detach(), input.grad(), parameter.grad()};
}

double relative_error(const at::Tensor& x, const at::Tensor& exact) {
  const at::Tensor wide = exact.to(at::kDouble);
  return x.to(at::kDouble).sub(wide).norm().item<double>() /
         std::max(wide.norm().item<double>(), 1e-300);
}

class LinearCrossEntropyTest
    : public ::testing::TestWithParam<std::tuple<at::ScalarType, int64_t, int64_t>> {
 protected:
  static constexpr double kScale = 1.0 / 700;

  LinearCrossEntropyTest() {
    std::tie(dtype_, rows_, vocab_) = GetParam();
    x_ = at::randn({rows_, 24}).to(dtype_);
    weight_ = at::randn({vocab_, 24}).mul(0.5).to(dtype_);
    targets_ = at::randint(vocab_, {rows_}, at::kLong);
    if (rows_ > 2) {
      targets_[1] = -100;
    }
  }
  Outcome fused() const {
    return run(
        [this](const at::Tensor& x, const at::Tensor& weight) {
          return linear_cross_entropy_sum(x, weight, targets_, kScale);
        },
        x_, weight_);
  }
  Outcome with_all_logits() const {
    return run(
        [this](const at::Tensor& x, const at::Tensor& weight) {
          return cross_entropy_sum(at::linear(x, weight), targets_).mul(kScale);
        },
        x_, weight_);
  }
  Outcome exact() const {
    return run(
        [this](const at::Tensor& x, const at::Tensor& weight) {
          return cross_entropy_sum_reference(at::linear(x, weight), targets_).mul(kScale);
        },
        x_.to(at::kDouble), weight_.to(at::kDouble));
  }

  at::ScalarType dtype_;
  int64_t rows_;
  int64_t vocab_;
  at::Tensor x_;
  at::Tensor weight_;
  at::Tensor targets_;
};

// Roundings of the path with all logits: logits, their gradient, each gradient. Chunks add one of
// fp32 sums to bf16; in fp32 the sums of rows are only grouped otherwise.
TEST_P(LinearCrossEntropyTest, IsAsAccurateAsWithAllLogits) {
  const Outcome actual = fused();
  const Outcome expected = exact();
  const Outcome plain = with_all_logits();
  const double unit = std::ldexp(1.0, dtype_ == at::kBFloat16 ? -9 : -24);
  const auto allowed = [&](const at::Tensor& theirs, const at::Tensor& reference) {
    return 1.5 * relative_error(theirs, reference) + unit;
  };
  EXPECT_EQ(actual.loss.scalar_type(), at::kFloat);
  EXPECT_EQ(actual.loss.dim(), 0);
  EXPECT_LE(relative_error(actual.loss, expected.loss), allowed(plain.loss, expected.loss));
  EXPECT_LE(relative_error(actual.grad_x, expected.grad_x), allowed(plain.grad_x, expected.grad_x));
  EXPECT_LE(relative_error(actual.grad_weight, expected.grad_weight),
            allowed(plain.grad_weight, expected.grad_weight));
  EXPECT_EQ(actual.grad_weight.scalar_type(), dtype_);
  EXPECT_EQ(actual.grad_x.scalar_type(), dtype_);
}

TEST_P(LinearCrossEntropyTest, OneChunkHasTheBitsOfAllLogits) {
  if (rows_ > loss_chunk_rows(vocab_, x_.element_size())) {
    EXPECT_GT(rows_, 1024);
    return;
  }
  // A power of two, so that it does not matter where it is multiplied in.
  const auto compare = [&](const Loss& ours, const Loss& theirs) {
    const Outcome actual = run(ours, x_, weight_);
    const Outcome expected = run(theirs, x_, weight_);
    expect_bitwise_equal(actual.loss, expected.loss);
    expect_bitwise_equal(actual.grad_x, expected.grad_x);
    expect_bitwise_equal(actual.grad_weight, expected.grad_weight);
  };
  const Loss plain = [&](const at::Tensor& x, const at::Tensor& weight) {
    return cross_entropy_sum(at::linear(x, weight), targets_).mul(0.125);
  };
  compare(
      [&](const at::Tensor& x, const at::Tensor& weight) {
        return linear_cross_entropy_sum(x, weight, targets_, 0.125);
      },
      plain);
  compare(
      [&](const at::Tensor& x, const at::Tensor& weight) {
        return linear_cross_entropy_sum(x, weight, targets_).mul(0.125);
      },
      plain);
}

TEST_P(LinearCrossEntropyTest, ForwardAloneHasTheSameLoss) {
  const c10::NoGradGuard no_grad;
  const at::Tensor loss = linear_cross_entropy_sum(x_, weight_, targets_, kScale);
  EXPECT_FALSE(loss.requires_grad());
  const c10::AutoGradMode with_grad(true);
  expect_bitwise_equal(loss, fused().loss);
}

INSTANTIATE_TEST_SUITE_P(Shapes, LinearCrossEntropyTest,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16),
                                            ::testing::Values(1, 3, 130, 1024, 1100, 2500),
                                            ::testing::Values(1, 37, 8200)));

TEST(LinearCrossEntropy, OnlyTheWantedGradientIsComputed) {
  const at::Tensor targets = at::randint(50, {8}, at::kLong);
  for (const bool wants_x : {false, true}) {
    const at::Tensor x = at::randn({8, 4}).requires_grad_(wants_x);
    const at::Tensor weight = at::randn({50, 4}).requires_grad_(!wants_x);
    linear_cross_entropy_sum(x, weight, targets).backward();
    EXPECT_EQ(x.grad().defined(), wants_x);
    EXPECT_EQ(weight.grad().defined(), !wants_x);
  }
}

// Beside x, weight and their gradients: logits of one chunk, not of all rows.
TEST(LinearCrossEntropy, KeepsOneChunkOfLogits) {
  const int64_t vocab = 6000;
  const int64_t rows = 8 * 1024;
  const at::Tensor x = at::randn({rows, 8}).to(at::kBFloat16).requires_grad_();
  const at::Tensor weight = at::randn({vocab, 8}).to(at::kBFloat16).requires_grad_();
  const at::Tensor targets = at::randint(vocab, {rows}, at::kLong);
  const int64_t before = narrowgauge::testing::live_bytes();
  narrowgauge::testing::reset_peak_bytes();
  linear_cross_entropy_sum(x, weight, targets).backward();
  const int64_t taken = narrowgauge::testing::peak_bytes() - before;
  const int64_t chunk = loss_chunk_rows(vocab, 2) * vocab * 2;
  EXPECT_LT(taken, chunk + 3 * rows * 8 * 2 + 4 * vocab * 8 * 4 + (1 << 20));
  EXPECT_LT(2 * taken, rows * vocab * 2);
}

TEST(LinearCrossEntropy, BackwardTwiceAndOtherTypes) {
  const at::Tensor targets = at::randint(9, {5}, at::kLong);
  const at::Tensor x = at::randn({5, 4}).requires_grad_();
  const at::Tensor weight = at::randn({9, 4}).requires_grad_();
  const at::Tensor loss = linear_cross_entropy_sum(x, weight, targets);
  loss.backward({}, /*retain_graph=*/true);
  const at::Tensor once = weight.grad().clone();
  loss.backward();
  expect_bitwise_equal(weight.grad(), once.mul(2));
  const at::Tensor wide =
      linear_cross_entropy_sum(x.to(at::kDouble), weight.to(at::kDouble), targets, 0.5);
  EXPECT_NEAR(wide.item<double>(), 0.5 * loss.item<double>(), 1e-5);
}

TEST(LinearCrossEntropy, NanNoRowsAndWrongArguments) {
  const at::Tensor weight = at::randn({7, 4}).requires_grad_();
  at::Tensor x = at::randn({3, 4});
  const at::Tensor targets = at::tensor({0L, 6L, -100L});
  x[2][0] = std::numeric_limits<float>::quiet_NaN();  // of a row without a target
  EXPECT_TRUE(std::isfinite(linear_cross_entropy_sum(x, weight, targets).item<float>()));
  x[1][0] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(linear_cross_entropy_sum(x, weight, targets).item<float>()));
  EXPECT_EQ(
      linear_cross_entropy_sum(x.narrow(0, 0, 0), weight, targets.narrow(0, 0, 0)).item<float>(),
      0.0F);
  EXPECT_THROW(linear_cross_entropy_sum(x, weight, at::tensor({0L, 7L, 1L})), c10::Error);
  EXPECT_THROW(linear_cross_entropy_sum(x, weight, at::tensor({0L, 1L})), c10::Error);
  EXPECT_THROW(linear_cross_entropy_sum(at::randn({3, 5}), weight, targets), c10::Error);
}

TEST(OutputHead, RunsItsHooks) {
  OutputHead head({4, 9, false}, at::kFloat);
  head.weight.detach().copy_(at::randn({9, 4}));
  int before = 0;
  int after = 0;
  head.register_forward_pre_hook([&](at::Tensor x) {
    ++before;
    return x.mul(2);
  });
  head.register_forward_hook([&](at::Tensor loss) {
    ++after;
    return loss;
  });
  const at::Tensor x = at::randn({6, 4});
  const at::Tensor targets = at::randint(9, {6}, at::kLong);
  const at::Tensor loss =
      head.loss(x, [targets](const at::Tensor& input, const at::Tensor& weight) {
        return linear_cross_entropy_sum(input, weight, targets);
      });
  expect_bitwise_equal(loss, linear_cross_entropy_sum(x.mul(2), head.weight, targets));
  EXPECT_EQ(before, 1);
  EXPECT_EQ(after, 1);
}

}  // namespace
}  // namespace narrowgauge::nn

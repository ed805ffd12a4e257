#include "nn/linear_distillation.h"

#include <ATen/ops/linear.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <tuple>

#include "nn/cross_entropy.h"
#include "nn/linear_cross_entropy.h"
#include "nn/loss_chunk.h"
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

// The definition, differentiated by autograd.
at::Tensor exact_loss(const at::Tensor& logits, const at::Tensor& teacher,
                      const at::Tensor& targets, const DistillationOptions& options) {
  const double temperature = options.temperature;
  const at::Tensor log_q = at::log_softmax(logits.div(temperature), 1);
  const at::Tensor log_t = at::log_softmax(teacher.div(temperature), 1);
  const at::Tensor kl = log_t.exp().mul(log_t.sub(log_q)).sum({1});
  const at::Tensor soft = at::where(targets.ne(-100), kl, at::zeros_like(kl)).sum();
  return cross_entropy_sum_reference(logits, targets)
      .mul(1 - options.weight)
      .add(soft, options.weight * temperature * temperature);
}

double relative_error(const at::Tensor& x, const at::Tensor& exact) {
  const at::Tensor wide = exact.to(at::kDouble);
  return x.to(at::kDouble).sub(wide).norm().item<double>() /
         std::max(wide.norm().item<double>(), 1e-300);
}

class DistillationTest
    : public ::testing::TestWithParam<
          std::tuple<at::ScalarType, std::tuple<int64_t, int64_t>, DistillationOptions>> {
 protected:
  static constexpr double kScale = 1.0 / 700;

  DistillationTest() {
    dtype_ = std::get<0>(GetParam());
    const auto [rows, vocab] = std::get<1>(GetParam());
    options_ = std::get<2>(GetParam());
    x_ = at::randn({rows, 24}).to(dtype_);
    weight_ = at::randn({vocab, 24}).mul(0.5).to(dtype_);
    teacher_ = {at::randn({rows, 40}).to(dtype_), at::randn({vocab, 40}).mul(0.4).to(dtype_)};
    targets_ = at::randint(vocab, {rows}, at::kLong);
    if (rows > 2) {
      targets_[1] = -100;
    }
  }

  Outcome exact() const {
    const at::Tensor teacher =
        at::linear(teacher_.x.to(at::kDouble), teacher_.weight.to(at::kDouble));
    return run(
        [&](const at::Tensor& x, const at::Tensor& weight) {
          return exact_loss(at::linear(x, weight), teacher, targets_, options_).mul(kScale);
        },
        x_.to(at::kDouble), weight_.to(at::kDouble));
  }

  at::ScalarType dtype_;
  DistillationOptions options_;
  at::Tensor x_;
  at::Tensor weight_;
  TeacherHead teacher_;
  at::Tensor targets_;
};

// Logits of both models are rounded, their gradient is, and each gradient is: relative errors of a
// unit or two each. A probability is as wrong as its logit, and where a row's probabilities nearly
// cancel, that stands beside a small difference of true ones: hence the second part.
TEST_P(DistillationTest, LossAndGradientsAreTheDefinitions) {
  const Outcome expected = exact();
  const double unit = std::ldexp(1.0, dtype_ == at::kBFloat16 ? -9 : -24);
  const Outcome fused = run(
      [&](const at::Tensor& x, const at::Tensor& weight) {
        return linear_distillation_sum(x, weight, teacher_, targets_, options_, kScale);
      },
      x_, weight_);
  const Outcome whole = run(
      [&](const at::Tensor& x, const at::Tensor& weight) {
        return distillation_sum(at::linear(x, weight), teacher_, targets_, options_, kScale);
      },
      x_, weight_);
  for (const Outcome& actual : {fused, whole}) {
    EXPECT_EQ(actual.loss.scalar_type(), at::kFloat);
    EXPECT_EQ(actual.loss.dim(), 0);
    EXPECT_EQ(actual.grad_x.scalar_type(), dtype_);
    EXPECT_EQ(actual.grad_weight.scalar_type(), dtype_);
    const auto expect_close = [&](const at::Tensor& value, const at::Tensor& exact, double other) {
      const double norm = exact.norm().item<double>();
      EXPECT_LE(relative_error(value, exact) * norm, 8 * unit * (norm + kScale * other));
    };
    expect_close(actual.loss, expected.loss, 1.0);
    expect_close(actual.grad_x, expected.grad_x, weight_.norm().item<double>());
    expect_close(actual.grad_weight, expected.grad_weight, x_.norm().item<double>());
  }
}

// What other devices run.
TEST_P(DistillationTest, OperatorsInDoubleAreTheDefinitionToTheLastBits) {
  const Outcome expected = exact();
  const TeacherHead teacher{teacher_.x.to(at::kDouble), teacher_.weight.to(at::kDouble)};
  const Outcome actual = run(
      [&](const at::Tensor& x, const at::Tensor& weight) {
        return linear_distillation_sum(x, weight, teacher, targets_, options_, kScale);
      },
      x_.to(at::kDouble), weight_.to(at::kDouble));
  EXPECT_LE(relative_error(actual.loss, expected.loss), 1e-12);
  EXPECT_LE(relative_error(actual.grad_x, expected.grad_x), 1e-12);
  EXPECT_LE(relative_error(actual.grad_weight, expected.grad_weight), 1e-12);
}

INSTANTIATE_TEST_SUITE_P(Shapes, DistillationTest,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16),
                                            ::testing::Values(std::tuple<int64_t, int64_t>{1, 2},
                                                              std::tuple<int64_t, int64_t>{7, 33},
                                                              std::tuple<int64_t, int64_t>{2100,
                                                                                           97}),
                                            ::testing::Values(DistillationOptions{1.0, 1.0},
                                                              DistillationOptions{0.5, 1.0},
                                                              DistillationOptions{0.7, 2.5})));

TEST(Distillation, WithoutATeachersShareItIsTheCrossEntropy) {
  const at::Tensor x = at::randn({50, 16});
  const at::Tensor weight = at::randn({40, 16});
  const at::Tensor targets = at::randint(40, {50}, at::kLong);
  const TeacherHead teacher{at::randn({50, 8}), at::randn({40, 8})};
  const Outcome actual = run(
      [&](const at::Tensor& a, const at::Tensor& b) {
        return linear_distillation_sum(a, b, teacher, targets, {0.0, 3.0});
      },
      x, weight);
  const Outcome expected =
      run([&](const at::Tensor& a,
              const at::Tensor& b) { return linear_cross_entropy_sum(a, b, targets); },
          x, weight);
  EXPECT_LE(relative_error(actual.loss, expected.loss), 1e-6);
  EXPECT_LE(relative_error(actual.grad_x, expected.grad_x), 1e-6);
  EXPECT_LE(relative_error(actual.grad_weight, expected.grad_weight), 1e-6);
}

TEST(Distillation, OfTheTeacherItselfThereIsNothingToLearn) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = at::randn({50, 16}).to(dtype);
    const at::Tensor weight = at::randn({40, 16}).to(dtype);
    const at::Tensor targets = at::randint(40, {50}, at::kLong);
    const Outcome actual = run(
        [&](const at::Tensor& a, const at::Tensor& b) {
          return linear_distillation_sum(a, b, {x, weight}, targets, {1.0, 2.0});
        },
        x, weight);
    EXPECT_NEAR(actual.loss.item<double>(), 0.0, 1e-4);
    EXPECT_LE(actual.grad_x.abs().max().item<double>(), 1e-5);
    EXPECT_LE(actual.grad_weight.abs().max().item<double>(), 1e-5);
  }
}

TEST(Distillation, TokensThatTheTeacherRulesOutAddNothing) {
  at::Tensor teacher_x = at::randn({3, 4});
  at::Tensor teacher_weight = at::randn({5, 4});
  teacher_x.select(1, 0).fill_(1);
  teacher_weight[2][0] = -std::numeric_limits<float>::infinity();
  const at::Tensor x = at::randn({3, 6});
  const at::Tensor weight = at::randn({5, 6});
  const at::Tensor targets = at::tensor({0L, 1L, 4L});
  const Outcome actual = run(
      [&](const at::Tensor& a, const at::Tensor& b) {
        return linear_distillation_sum(a, b, {teacher_x, teacher_weight}, targets, {});
      },
      x, weight);
  EXPECT_TRUE(std::isfinite(actual.loss.item<double>()));
  EXPECT_TRUE(actual.grad_x.isfinite().all().item<bool>());
}

TEST(Distillation, AGradientOfTheLossMultiplies) {
  const at::Tensor x = at::randn({20, 16});
  const at::Tensor weight = at::randn({10, 16});
  const at::Tensor targets = at::randint(10, {20}, at::kLong);
  const TeacherHead teacher{at::randn({20, 8}), at::randn({10, 8})};
  const auto loss = [&](double after) {
    return run(
        [&](const at::Tensor& a, const at::Tensor& b) {
          return linear_distillation_sum(a, b, teacher, targets, {0.5, 1.5}).mul(after);
        },
        x, weight);
  };
  expect_bitwise_equal(loss(4.0).grad_x, loss(1.0).grad_x.mul(4));
  expect_bitwise_equal(loss(4.0).grad_weight, loss(1.0).grad_weight.mul(4));
}

TEST(Distillation, NoTensorOfAllLogitsLives) {
  const int64_t rows = 16 * loss_chunk_rows(2048, 4);
  const at::Tensor x = at::randn({rows, 8}).requires_grad_();
  const at::Tensor weight = at::randn({2048, 8}).requires_grad_();
  const TeacherHead teacher{at::randn({rows, 8}), at::randn({2048, 8})};
  const at::Tensor targets = at::randint(2048, {rows}, at::kLong);
  const int64_t before = narrowgauge::testing::live_bytes();
  narrowgauge::testing::reset_peak_bytes();
  linear_distillation_sum(x, weight, teacher, targets, {}).backward();
  EXPECT_LT(narrowgauge::testing::peak_bytes() - before, rows * 2048 * 4 / 4);
}

TEST(Distillation, RefusesWhatDoesNotFit) {
  const at::Tensor x = at::randn({3, 4});
  const at::Tensor weight = at::randn({5, 4});
  const at::Tensor targets = at::tensor({0L, 1L, 2L});
  const TeacherHead good{at::randn({3, 4}), at::randn({5, 4})};
  const auto call = [&](const TeacherHead& teacher, DistillationOptions options) {
    return linear_distillation_sum(x, weight, teacher, targets, options);
  };
  EXPECT_NO_THROW(call(good, {}));
  EXPECT_THROW(call({at::randn({2, 4}), good.weight}, {}), c10::Error);
  EXPECT_THROW(call({good.x, at::randn({6, 4})}, {}), c10::Error);
  EXPECT_THROW(call({good.x.to(at::kBFloat16), good.weight.to(at::kBFloat16)}, {}), c10::Error);
  EXPECT_THROW(call(good, {1.5, 1.0}), c10::Error);
  EXPECT_THROW(call(good, {0.5, 0.0}), c10::Error);
}

}  // namespace
}  // namespace narrowgauge::nn

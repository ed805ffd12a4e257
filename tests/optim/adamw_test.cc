#include "optim/adamw.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/numerics.h"

namespace narrowgauge::optim {
namespace {

using narrowgauge::testing::expect_bitwise_equal;

constexpr AdamOptions kOptions{.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8};

AdamW one_group(std::vector<at::Tensor> params, double weight_decay = 0.0, double lr_scale = 1.0) {
  ParameterGroup group;
  for (size_t i = 0; i < params.size(); ++i) {
    group.names.push_back("p" + std::to_string(i));
  }
  group.params = std::move(params);
  group.weight_decay = weight_decay;
  group.lr_scale = lr_scale;
  return AdamW({group}, kOptions);
}

TEST(AdamW, FirstStepMovesByTheLearningRateAgainstTheSignOfTheGradient) {
  const at::Tensor p = at::zeros({3}).requires_grad_();
  p.mutable_grad() = at::full({3}, -0.5F);
  one_group({p}).step(0.01);
  EXPECT_NEAR(p[2].item<double>(), 0.01, 1e-8);
}

TEST(AdamW, DecayAndLearningRateScaleBelongToTheGroup) {
  const at::Tensor a = at::ones({4}).requires_grad_();
  const at::Tensor b = at::ones({4}).requires_grad_();
  a.mutable_grad() = at::zeros({4});
  b.mutable_grad() = at::zeros({4});
  AdamW optimizer({{{"a"}, {a}, 0.5, 0.1}, {{"b"}, {b}, 1.0, 0.0}}, kOptions);
  optimizer.step(0.2);
  EXPECT_FLOAT_EQ(a[0].item<float>(), 1.0F - 0.2F * 0.5F * 0.1F);
  EXPECT_EQ(b[0].item<float>(), 1.0F);
}

TEST(AdamW, ScaledGradientEqualsOneScaledBefore) {
  const at::Tensor p = at::randn({217});
  const at::Tensor q = p.clone();
  const at::Tensor grad = at::randn({217});
  p.mutable_grad() = grad;
  q.mutable_grad() = grad.mul(0.3F);
  one_group({p}).step(1e-3, static_cast<double>(0.3F));
  one_group({q}).step(1e-3);
  expect_bitwise_equal(p, q);
  expect_bitwise_equal(p.grad(), grad);
}

TEST(AdamW, BitsDoNotDependOnTheNumberOfThreads) {
  const at::Tensor start = at::randn({100003});
  const at::Tensor grad = at::randn({100003});
  const int threads_before = at::get_num_threads();
  at::Tensor ends[2];
  for (int i = 0; i < 2; ++i) {
    at::set_num_threads(i == 0 ? 1 : 3);
    ends[i] = start.clone();
    ends[i].mutable_grad() = grad;
    AdamW optimizer = one_group({ends[i]}, 0.1);
    optimizer.step(1e-2);
    optimizer.step(1e-2);
  }
  at::set_num_threads(threads_before);
  expect_bitwise_equal(ends[1], ends[0]);
}

TEST(AdamW, EmptyTensorsAndMissingGradientsAreLeftAlone) {
  const at::Tensor empty = at::empty({0, 5}).requires_grad_();
  const at::Tensor frozen = at::ones({2}).requires_grad_();
  empty.mutable_grad() = at::empty({0, 5});
  AdamW optimizer = one_group({empty, frozen}, 0.5);
  optimizer.step(0.1);
  expect_bitwise_equal(frozen, at::ones({2}));
  EXPECT_EQ(optimizer.step_count(), 1);
}

TEST(AdamW, ResumedFromItsStateItTakesTheSameSteps) {
  const at::Tensor p = at::randn({50});
  std::vector<at::Tensor> grads;
  for (int i = 0; i < 6; ++i) {
    grads.push_back(at::randn({50}));
  }
  AdamW first = one_group({p}, 0.1);
  for (int i = 0; i < 3; ++i) {
    p.mutable_grad() = grads[static_cast<size_t>(i)];
    first.step(1e-2);
  }
  const at::Tensor q = p.clone();
  AdamW second = one_group({q}, 0.1);
  second.set_step_count(first.step_count());
  const auto saved = first.state();
  const auto loaded = second.state();
  ASSERT_EQ(saved.size(), 2U);
  for (size_t i = 0; i < saved.size(); ++i) {
    EXPECT_EQ(saved[i].name, loaded[i].name);
    loaded[i].local.copy_(saved[i].local);
  }
  EXPECT_EQ(saved[0].name, "p0.exp_avg");
  EXPECT_EQ(saved[1].name, "p0.exp_avg_sq");
  for (int i = 3; i < 6; ++i) {
    p.mutable_grad() = grads[static_cast<size_t>(i)];
    q.mutable_grad() = grads[static_cast<size_t>(i)];
    first.step(1e-2);
    second.step(1e-2);
  }
  expect_bitwise_equal(q, p);
}

TEST(AdamW, StepAllocatesNothingOnceTheMomentsExist) {
  const at::Tensor p = at::ones({64});
  p.mutable_grad() = at::ones({64});
  AdamW optimizer = one_group({p});
  optimizer.step(1e-3);
  const void* before = optimizer.state()[0].local.const_data_ptr();
  optimizer.step(1e-3);
  EXPECT_EQ(optimizer.state()[0].local.const_data_ptr(), before);
}

TEST(AdamW, ZeroGradDropsGradients) {
  const at::Tensor p = at::ones({2});
  p.mutable_grad() = at::ones({2});
  one_group({p}).zero_grad();
  EXPECT_FALSE(p.grad().defined());
}

TEST(AdamW, NanGradientReachesTheParameter) {
  const at::Tensor p = at::ones({20});
  p.mutable_grad() = at::ones({20});
  p.grad()[17] = std::nanf("");
  one_group({p}).step(1e-3);
  EXPECT_TRUE(p[17].isnan().item<bool>());
  EXPECT_EQ(p.isnan().sum().item<int64_t>(), 1);
}

TEST(AdamW, RefusesWhatItCanNotUpdate) {
  EXPECT_THROW(one_group({at::ones({2}, at::kBFloat16)}), c10::Error);
  EXPECT_THROW(one_group({at::ones({2, 3}).t()}), c10::Error);
  EXPECT_THROW(AdamW({{{"a", "a"}, {at::ones({1}), at::ones({1})}, 1.0, 0.0}}, kOptions),
               c10::Error);
  EXPECT_THROW(AdamW({{{"a"}, {}, 1.0, 0.0}}, kOptions), c10::Error);
  EXPECT_THROW(AdamW({}, {.beta1 = 1.0}), c10::Error);
  EXPECT_THROW(one_group({at::ones({1})}, -0.1), c10::Error);
}

}  // namespace
}  // namespace narrowgauge::optim

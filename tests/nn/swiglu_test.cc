#include "nn/swiglu.h"

#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <limits>
#include <tuple>

#include "tests/support/numerics.h"

namespace narrowgauge::nn {
namespace {

using narrowgauge::testing::expect_bitwise_equal;
using narrowgauge::testing::expect_close;
using narrowgauge::testing::tolerance;

class SwigluTest : public ::testing::TestWithParam<std::tuple<at::ScalarType, int64_t, int64_t>> {};

TEST_P(SwigluTest, MatchesFp64ForwardAndBackward) {
  const auto [dtype, rows, ffn] = GetParam();
  const at::Tensor x = at::randn({rows, 2 * ffn}).mul(4).to(dtype).requires_grad_();
  const at::Tensor grad = at::randn({rows, ffn}).to(dtype);
  const at::Tensor y = swiglu(x);
  y.backward(grad);
  const at::Tensor x64 = x.detach().to(at::kDouble).requires_grad_();
  const at::Tensor y64 = swiglu_reference(x64);
  y64.backward(grad.to(at::kDouble));
  EXPECT_EQ(y.scalar_type(), dtype);
  expect_close(y, y64, tolerance(dtype, 8));
  expect_close(x.grad(), x64.grad(), tolerance(dtype, 8));
}

INSTANTIATE_TEST_SUITE_P(Shapes, SwigluTest,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16),
                                            ::testing::Values(0, 1, 3, 33),
                                            ::testing::Values(1, 16, 217, 1024)));

TEST(Swiglu, ExtremeGatesSaturateWithoutNan) {
  // silu is 0 far below zero and the identity far above; exp of the argument overflows on the way.
  const at::Tensor gate = at::tensor({-200.0F, -1e30F, 100.0F, 1e30F, 0.0F, -0.0F});
  const at::Tensor x = at::full({12}, 1.0F);
  x.narrow(0, 0, 6).copy_(gate);
  x.requires_grad_();
  const at::Tensor y = swiglu(x);
  y.sum().backward();
  expect_close(y, at::tensor({0.0, 0.0, 100.0, 1e30, 0.0, 0.0}), tolerance(at::kFloat, 0));
  expect_close(x.grad().narrow(0, 0, 6), at::tensor({0.0, 0.0, 1.0, 1.0, 0.5, 0.5}),
               tolerance(at::kFloat, 0));
}

TEST(Swiglu, NanPropagatesToItsElementAlone) {
  const at::Tensor x = at::full({1, 8}, 1.0F);
  x[0][2] = std::numeric_limits<float>::quiet_NaN();
  const at::Tensor y = swiglu(x);
  EXPECT_TRUE(y[0][2].isnan().item<bool>());
  EXPECT_EQ(y.isnan().sum().item<int64_t>(), 1);
}

TEST(Swiglu, StridedInputEqualsItsContiguousCopy) {
  const at::Tensor base = at::randn({10, 6}).to(at::kBFloat16);
  expect_bitwise_equal(swiglu(base.t()), swiglu(base.t().contiguous()));
}

TEST(Swiglu, OddWidthIsRefused) { EXPECT_THROW(swiglu(at::randn({2, 3})), c10::Error); }

}  // namespace
}  // namespace narrowgauge::nn

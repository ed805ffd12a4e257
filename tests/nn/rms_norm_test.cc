#include "nn/rms_norm.h"

#include <ATen/Parallel.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
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

constexpr double kEps = 1e-5;

at::Tensor leaf(at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::randn(sizes, at::kFloat).to(dtype).requires_grad_();
}

at::Tensor wide_leaf(const at::Tensor& x) { return x.detach().to(at::kDouble).requires_grad_(); }

// Sum of the absolute values of the two terms of x's gradient, which cancel when dim is small.
at::Tensor grad_x_terms(const at::Tensor& x64, const at::Tensor& weight64,
                        const at::Tensor& grad_y) {
  const at::Tensor x = x64.detach();
  const at::Tensor direct = grad_y.to(at::kDouble).mul(weight64.detach()).abs();
  const at::Tensor rstd = x.square().mean(-1, true).add(kEps).rsqrt();
  const at::Tensor through_rstd =
      x.abs().mul(direct.mul(x.abs()).mean(-1, true)).mul(rstd.square());
  return direct.add(through_rstd).mul(rstd);
}

class RmsNormTest : public ::testing::TestWithParam<std::tuple<at::ScalarType, int64_t, int64_t>> {
};

TEST_P(RmsNormTest, MatchesFp64ForwardAndBackward) {
  const auto [dtype, rows, dim] = GetParam();
  const at::Tensor x = leaf({rows, dim}, dtype);
  const at::Tensor weight = leaf({dim}, dtype);
  const at::Tensor grad_y = at::randn({rows, dim}).to(dtype);
  const at::Tensor y = rms_norm(x, weight, kEps);
  y.backward(grad_y);

  const at::Tensor x64 = wide_leaf(x);
  const at::Tensor weight64 = wide_leaf(weight);
  const at::Tensor y64 = rms_norm_reference(x64, weight64, kEps);
  y64.backward(grad_y.to(at::kDouble));
  EXPECT_EQ(y.scalar_type(), dtype);
  expect_close(y, y64, tolerance(dtype, dim));
  expect_close(x.grad(), x64.grad(), tolerance(dtype, 2 * dim),
               grad_x_terms(x64, weight64, grad_y));
  expect_close(weight.grad(), weight64.grad(), tolerance(dtype, rows + dim));
}

TEST_P(RmsNormTest, AddThenNormMatchesFp64) {
  const auto [dtype, rows, dim] = GetParam();
  const at::Tensor residual = leaf({rows, dim}, dtype);
  const at::Tensor x = leaf({rows, dim}, dtype);
  const at::Tensor weight = leaf({dim}, at::kFloat);
  const at::Tensor grad_h = at::randn({rows, dim}).to(dtype);
  const at::Tensor grad_y = at::randn({rows, dim}).to(dtype);
  const auto [h, y] = add_rms_norm(residual, x, weight, kEps);
  h.mul(grad_h).to(at::kFloat).sum().add(y.mul(grad_y).to(at::kFloat).sum()).backward();

  // h is rounded to dtype, and the norm sees the rounded h.
  const at::Tensor h_expected = residual.detach().add(x.detach());
  expect_bitwise_equal(h, h_expected);
  expect_bitwise_equal(y, rms_norm(h_expected, weight.detach(), kEps));
  const at::Tensor h64 = wide_leaf(h_expected);
  const at::Tensor weight64 = wide_leaf(weight);
  const at::Tensor y64 = rms_norm_reference(h64, weight64, kEps);
  h64.mul(grad_h).sum().add(y64.mul(grad_y).sum()).backward();
  expect_close(residual.grad(), h64.grad(), tolerance(dtype, 2 * dim),
               grad_x_terms(h64, weight64, grad_y).add(grad_h.abs()));
  expect_bitwise_equal(x.grad(), residual.grad());
  expect_close(weight.grad(), weight64.grad(), tolerance(at::kFloat, rows + dim));
}

INSTANTIATE_TEST_SUITE_P(Shapes, RmsNormTest,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16),
                                            ::testing::Values(1, 3, 65, 300),
                                            ::testing::Values(1, 16, 217, 384)));

TEST(RmsNorm, NoRowsGiveNoRowsAndAZeroGradient) {
  const at::Tensor x = leaf({0, 16}, at::kBFloat16);
  const at::Tensor weight = leaf({16}, at::kFloat);
  const at::Tensor y = rms_norm(x, weight, kEps);
  y.sum().backward();
  EXPECT_EQ(y.sizes(), x.sizes());
  expect_bitwise_equal(weight.grad(), at::zeros({16}));
}

TEST(RmsNorm, StridedInputAndGradientEqualTheirContiguousCopies) {
  const at::Tensor base = at::randn({2, 8, 5});
  const at::Tensor strided = base.transpose(1, 2).requires_grad_();
  const at::Tensor packed = base.transpose(1, 2).contiguous().requires_grad_();
  const at::Tensor weight = at::randn({8});
  const at::Tensor grad = at::randn({5, 2, 8}).transpose(0, 1);
  const at::Tensor y = rms_norm(strided, weight, kEps);
  y.backward(grad);
  const at::Tensor expected = rms_norm(packed, weight, kEps);
  expected.backward(grad.contiguous());
  expect_bitwise_equal(y, expected);
  expect_bitwise_equal(strided.grad(), packed.grad());
}

TEST(RmsNorm, NanAndInfinityStayInTheirRow) {
  const at::Tensor x = at::ones({3, 20}, at::kBFloat16);
  x[0][7] = std::numeric_limits<float>::quiet_NaN();
  x[1][19] = std::numeric_limits<float>::infinity();
  const at::Tensor y = rms_norm(x, at::ones({20}), kEps);
  EXPECT_TRUE(y[0].isnan().all().item<bool>());
  EXPECT_TRUE(y[1][19].isnan().item<bool>());  // inf * (1 / inf)
  EXPECT_TRUE(y[2].isfinite().all().item<bool>());
}

TEST(RmsNorm, ZeroRowGivesZeros) {
  expect_bitwise_equal(rms_norm(at::zeros({1, 24}), at::ones({24}), kEps), at::zeros({1, 24}));
}

TEST(RmsNorm, BitsDoNotDependOnTheNumberOfThreads) {
  const at::Tensor x = at::randn({1000, 384}).to(at::kBFloat16);
  const at::Tensor grad = at::randn({1000, 384}).to(at::kBFloat16);
  at::Tensor grads[2];
  const int threads_before = at::get_num_threads();
  for (int i = 0; i < 2; ++i) {
    at::set_num_threads(i == 0 ? 1 : 3);
    const at::Tensor weight = at::ones({384}).requires_grad_();
    rms_norm(x, weight, kEps).backward(grad);
    grads[i] = weight.grad();
  }
  at::set_num_threads(threads_before);
  expect_bitwise_equal(grads[1], grads[0]);
}

TEST(RmsNorm, WrongShapesAreRefused) {
  EXPECT_THROW(rms_norm(at::ones({2, 3}), at::ones({4}), kEps), c10::Error);
  EXPECT_THROW(rms_norm(at::ones({2, 0}), at::ones({0}), kEps), c10::Error);
  EXPECT_THROW(add_rms_norm(at::ones({2, 3}), at::ones({1, 3}), at::ones({3}), kEps), c10::Error);
}

}  // namespace
}  // namespace narrowgauge::nn

#include "nn/rotary_embedding.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "tests/support/numerics.h"

namespace narrowgauge::nn {
namespace {

using narrowgauge::testing::expect_bitwise_equal;
using narrowgauge::testing::expect_close;
using narrowgauge::testing::tolerance;

TransformerConfig config_of(int64_t head_dim) {
  TransformerConfig config;
  config.head_dim = head_dim;
  return config;
}

at::Tensor weighted_sum(const QKV& qkv, const QKV& weights) {
  return qkv.q.mul(weights.q).sum().add(qkv.k.mul(weights.k).sum()).add(qkv.v.mul(weights.v).sum());
}

class SplitQkvRopeTest
    : public ::testing::TestWithParam<std::tuple<at::ScalarType, int64_t, int64_t, bool>> {};

TEST_P(SplitQkvRopeTest, MatchesFp64ForwardAndBackward) {
  const auto [dtype, length, head_dim, has_norm] = GetParam();
  const HeadCounts heads{4, 2};
  const RotaryTable table = make_rotary_table(config_of(head_dim), 20);
  const at::Tensor qkv = at::randn({3, length, 8 * head_dim}).to(dtype).requires_grad_();
  QKNorm norm;
  QKNorm norm64;
  if (has_norm) {
    norm.q_weight = at::randn({head_dim}).requires_grad_();
    norm.k_weight = at::randn({head_dim}).requires_grad_();
    norm64.q_weight = norm.q_weight.detach().to(at::kDouble).requires_grad_();
    norm64.k_weight = norm.k_weight.detach().to(at::kDouble).requires_grad_();
  }
  const at::Tensor qkv64 = qkv.detach().to(at::kDouble).requires_grad_();
  const QKV out = split_qkv_rope(qkv, table, 5, heads, norm);
  const QKV out64 = split_qkv_rope_reference(qkv64, table, 5, heads, norm64);
  // Two roundings to dtype with the norm.
  const double allowed = tolerance(dtype, head_dim) * (has_norm ? 3 : 1);
  expect_close(out.q, out64.q, allowed);
  expect_close(out.k, out64.k, allowed);
  expect_bitwise_equal(out.v, out64.v.to(dtype));

  const QKV grads{at::randn(out.q.sizes()).to(dtype), at::randn(out.k.sizes()).to(dtype),
                  at::randn(out.v.sizes()).to(dtype)};
  weighted_sum(out, grads).backward();
  weighted_sum(out64, grads).backward();
  expect_close(qkv.grad(), qkv64.grad(), 2 * allowed);
  if (has_norm) {
    expect_close(norm.q_weight.grad(), norm64.q_weight.grad(),
                 tolerance(dtype, 3 * length * head_dim) * 3);
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, SplitQkvRopeTest,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16),
                                            ::testing::Values(0, 1, 13),
                                            ::testing::Values(2, 22, 64), ::testing::Bool()));

TEST(SplitQkvRope, StridedGradientsEqualTheirContiguousCopies) {
  const RotaryTable table = make_rotary_table(config_of(8), 6);
  const at::Tensor base = at::randn({2, 6, 3 * 8});
  at::Tensor grads[2];
  const at::Tensor q_grad = at::randn({2, 6, 1, 8}).transpose(1, 2);  // as attention hands it back
  for (int i = 0; i < 2; ++i) {
    const at::Tensor qkv = base.clone().requires_grad_();
    const QKV out = split_qkv_rope(qkv, table, 0, {1, 1});
    out.q.backward(i == 0 ? q_grad : q_grad.contiguous());
    grads[i] = qkv.grad();
  }
  expect_bitwise_equal(grads[0], grads[1]);
}

TEST(SplitQkvRope, ScoresDependOnTheDistanceAlone) {
  const RotaryTable table = make_rotary_table(config_of(16), 64);
  const at::Tensor row = at::randn({1, 1, 3 * 16});
  const auto score = [&](int64_t q_position, int64_t k_position) {
    return split_qkv_rope(row, table, q_position, {1, 1})
        .q.mul(split_qkv_rope(row, table, k_position, {1, 1}).k)
        .sum()
        .item<double>();
  };
  EXPECT_NEAR(score(7, 3), score(47, 43), 1e-4);
  EXPECT_GT(std::abs(score(7, 3) - score(7, 6)), 1e-3);
}

TEST(SplitQkvRope, WrongArgumentsAreRefused) {
  const RotaryTable table = make_rotary_table(config_of(4), 8);
  EXPECT_THROW(split_qkv_rope(at::randn({1, 5, 12}), table, 4, {1, 1}), c10::Error);
  EXPECT_THROW(split_qkv_rope(at::randn({1, 5, 12}), table, -1, {1, 1}), c10::Error);
  EXPECT_THROW(split_qkv_rope(at::randn({1, 5, 16}), table, 0, {1, 1}), c10::Error);
  EXPECT_THROW(split_qkv_rope(at::randn({1, 5, 12}), table, 0, {1, 1}, {at::randn({4}), {}, 1e-6}),
               c10::Error);
  EXPECT_THROW(make_rotary_table(config_of(3), 8), c10::Error);
  TransformerConfig yarn = config_of(4);
  yarn.rope_scaling = "yarn";
  EXPECT_THROW(make_rotary_table(yarn, 8), c10::Error);
}

}  // namespace
}  // namespace narrowgauge::nn

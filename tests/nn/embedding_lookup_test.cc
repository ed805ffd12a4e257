#include "nn/embedding_lookup.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "tests/support/numerics.h"

namespace narrowgauge::nn {
namespace {

using narrowgauge::testing::expect_bitwise_equal;
using narrowgauge::testing::expect_close;
using narrowgauge::testing::tolerance;

TEST(EmbeddingLookup, MatchesFp64SumOfRows) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor weight = at::randn({11, 37}).to(dtype).requires_grad_();
    const at::Tensor ids = at::randint(10, {3, 70}, at::kLong);  // row 10 is never used
    const at::Tensor grad = at::randn({3, 70, 37}).to(dtype);
    const at::Tensor rows = embedding_lookup(weight, ids);
    rows.backward(grad);
    expect_bitwise_equal(rows, weight.detach().index_select(0, ids.flatten()).view({3, 70, 37}));
    const at::Tensor expected =
        at::zeros({11, 37}, at::kDouble)
            .index_add(0, ids.flatten(), grad.to(at::kDouble).flatten(0, 1));
    expect_close(weight.grad(), expected, tolerance(dtype, 210));
    expect_bitwise_equal(weight.grad()[10], at::zeros({37}, dtype));
  }
}

TEST(EmbeddingLookup, ManyEqualTokensSumInFp32) {
  // A running bf16 sum of ones stops at 256.
  const at::Tensor weight = at::zeros({4, 3}, at::kBFloat16).requires_grad_();
  embedding_lookup(weight, at::ones({1000}, at::kLong)).sum().backward();
  EXPECT_EQ(weight.grad()[1][0].item<float>(), 1000.0F);
}

TEST(EmbeddingLookup, NoIdsGiveNoRows) {
  const at::Tensor weight = at::randn({4, 3}).requires_grad_();
  const at::Tensor rows = embedding_lookup(weight, at::empty({2, 0}, at::kLong));
  rows.sum().backward();
  EXPECT_EQ(rows.sizes(), at::IntArrayRef({2, 0, 3}));
  expect_bitwise_equal(weight.grad(), at::zeros({4, 3}));
}

TEST(EmbeddingLookup, IdOutOfRangeIsNamed) {
  try {
    embedding_lookup(at::randn({4, 3}), at::tensor({0L, 3L, 4L}));
    ADD_FAILURE() << "id 4 was accepted";
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    EXPECT_NE(text.find("got 4 at position 2"), std::string::npos) << text;
  }
  EXPECT_THROW(embedding_lookup(at::randn({4, 3}), at::tensor({-1L})), c10::Error);
}

}  // namespace
}  // namespace narrowgauge::nn

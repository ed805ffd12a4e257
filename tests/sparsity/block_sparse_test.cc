#include "sparsity/block_sparse.h"

#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <tuple>

#include "sparsity/supermask_linear.h"
#include "tests/support/numerics.h"

namespace narrowgauge::sparsity {
namespace {

using narrowgauge::testing::expect_bitwise_equal;
using narrowgauge::testing::expect_close;
using narrowgauge::testing::tolerance;

// About a fifth of the blocks are not zero; the last block row is empty.
at::Tensor random_blocks(int64_t rows, int64_t cols, int64_t size, at::ScalarType dtype) {
  const at::Tensor keep = at::rand({rows / size, cols / size}).lt(0.2);
  keep[rows / size - 1].fill_(false);
  return at::randn({rows, cols})
      .masked_fill(keep.repeat_interleave(size, 0).repeat_interleave(size, 1).logical_not(), 0)
      .to(dtype);
}

class BlockSparseTest
    : public ::testing::TestWithParam<std::tuple<at::ScalarType, int64_t, int64_t>> {};

TEST_P(BlockSparseTest, HoldsWhatTheDenseMatrixHolds) {
  const auto [dtype, size, tokens] = GetParam();
  const at::Tensor weight = random_blocks(4 * size, 6 * size, size, dtype);
  const BlockSparseMatrix sparse = to_block_sparse(weight, size);
  expect_bitwise_equal(to_dense(sparse), weight);
  expect_bitwise_equal(to_dense(transpose(sparse)), to_dense(sparse).t().contiguous());
  EXPECT_EQ(sparse.crow_indices[4].item<int64_t>(), sparse.num_blocks());
}

TEST_P(BlockSparseTest, ProductEqualsDense) {
  const auto [dtype, size, tokens] = GetParam();
  const at::Tensor weight = random_blocks(4 * size, 6 * size, size, dtype);
  const at::Tensor x = at::randn({tokens, 6 * size}).to(dtype);
  const at::Tensor y = block_sparse_matmul(x, to_block_sparse(weight, size));
  const at::Tensor w64 = weight.to(at::kDouble).t();
  const at::Tensor x64 = x.to(at::kDouble);
  expect_close(y, at::mm(x64, w64), tolerance(dtype, 6 * size), at::mm(x64.abs(), w64.abs()));
}

INSTANTIATE_TEST_SUITE_P(Shapes, BlockSparseTest,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16),
                                            ::testing::Values(16, 32, 48, 64, 128),
                                            ::testing::Values(0, 1, 7, 100)));

TEST(BlockSparse, BadShapesAreRefused) {
  EXPECT_THROW(to_block_sparse(at::randn({64, 60}), 16), c10::Error);
  EXPECT_THROW(to_block_sparse(at::randn({64, 64}), 20), c10::Error);
  EXPECT_THROW(block_sparse_matmul(at::randn({4, 32}), to_block_sparse(at::randn({64, 64}), 16)),
               c10::Error);
}

class SupermaskTest : public ::testing::TestWithParam<std::tuple<double, int64_t>> {};

// The peer's test_supermask: nnz == round(blocks * (1 - sparsity)).
TEST_P(SupermaskTest, KeepsAsManyBlocksAsSaid) {
  const auto [sparsity, block_size] = GetParam();
  const nn::Linear linear({128, 256}, at::kFloat);
  const SupermaskLinear masked(linear, sparsity, block_size);
  const double blocks = 128.0 * 256.0 / static_cast<double>(block_size * block_size);
  EXPECT_EQ(masked.block_mask().sum().item<int64_t>(),
            static_cast<int64_t>(blocks - std::nearbyint(blocks * sparsity)));
}

INSTANTIATE_TEST_SUITE_P(Levels, SupermaskTest,
                         ::testing::Combine(::testing::Values(0.0, 0.25, 0.5, 0.9),
                                            ::testing::Values(1, 2, 4, 16, 64)));

TEST(Supermask, GradientsAreThoseOfTheMaskedProductAndStraightThroughForScores) {
  nn::Linear linear({64, 32}, at::kFloat);
  {
    const at::NoGradGuard no_grad;
    linear.weight.normal_();
  }
  SupermaskLinear masked(linear, 0.5, 16);
  const at::Tensor x = at::randn({8, 64}).requires_grad_();
  const at::Tensor grad = at::randn({8, 32});
  masked(x).backward(grad);
  const at::Tensor mask =
      masked.block_mask().repeat_interleave(16, 0).repeat_interleave(16, 1).to(at::kFloat);
  const at::Tensor weight = linear.weight.detach();
  const at::Tensor of_masked = at::mm(grad.t(), x.detach());
  expect_bitwise_equal(x.grad(), at::mm(grad, weight.mul(mask)));
  expect_bitwise_equal(masked.weight.grad(), of_masked.mul(mask));
  expect_close(masked.scores.grad(), of_masked.mul(weight).view({2, 16, 4, 16}).sum({1, 3}),
               tolerance(at::kFloat, 256));
}

TEST(Supermask, LinearAndBlockSparseFormsComputeTheSame) {
  nn::Linear linear({128, 64, /*bias=*/true}, at::kBFloat16);
  {
    const at::NoGradGuard no_grad;
    linear.weight.normal_();
    linear.bias.normal_();
  }
  SupermaskLinear masked(linear, 0.75, 32);
  const at::Tensor x = at::randn({5, 128}).to(at::kBFloat16);
  const auto folded = masked.to_linear();
  expect_bitwise_equal((*folded)(x).detach(), masked(x).detach());
  const BlockSparseMatrix sparse = masked.to_block_sparse();
  EXPECT_EQ(sparse.num_blocks(), 2);
  expect_bitwise_equal(to_dense(sparse), folded->weight.detach().add(0.0));  // no -0
}

}  // namespace
}  // namespace narrowgauge::sparsity

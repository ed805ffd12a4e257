#include "sparsity/semi_structured.h"

#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <limits>
#include <tuple>
#include <vector>

#include "tests/support/numerics.h"

namespace narrowgauge::sparsity {
namespace {

using narrowgauge::testing::expect_bitwise_equal;
using narrowgauge::testing::expect_close;
using narrowgauge::testing::tolerance;

const std::vector<TileAlgorithm> kAlgorithms = {
    TileAlgorithm::kOptimal, TileAlgorithm::kLargestAbsValuesGreedy,
    TileAlgorithm::kLargestValuesGreedy, TileAlgorithm::kCausal1122};

// [rows / 4, cols / 4, 4, 4] of ones and zeros.
at::Tensor tiles_of(const at::Tensor& mask) {
  const at::Tensor keep = unpack_mask(mask).to(at::kLong);
  return keep.view({keep.size(0) / 4, 4, keep.size(1) / 4, 4}).permute({0, 2, 1, 3});
}

double retained_energy(TileAlgorithm algorithm) {
  const at::Tensor weight = at::randn({1024, 1024});
  const at::Tensor kept = apply_mask(weight, semi_structured_mask(weight, algorithm));
  return kept.square().sum().div(weight.square().sum()).item<double>();
}

class TileMaskTest
    : public ::testing::TestWithParam<std::tuple<at::ScalarType, TileAlgorithm, int64_t, int64_t>> {
};

TEST_P(TileMaskTest, EqualsTheReference) {
  const auto [dtype, algorithm, rows, cols] = GetParam();
  const at::Tensor weight = at::randn({rows, cols}).to(dtype);
  expect_bitwise_equal(semi_structured_mask(weight, algorithm),
                       semi_structured_mask_reference(weight, algorithm));
}

INSTANTIATE_TEST_SUITE_P(Shapes, TileMaskTest,
                         ::testing::Combine(::testing::Values(at::kFloat),
                                            ::testing::ValuesIn(kAlgorithms),
                                            ::testing::Values(4, 12),
                                            ::testing::Values(8, 64, 200)));

TEST(TileMask, GreedyAlgorithmsBreakTiesOfBfloat16AsTheReference) {
  // Few distinct values: every tile has ties.
  const at::Tensor weight = at::randint(-3, 4, {64, 128}).to(at::kBFloat16);
  for (const TileAlgorithm algorithm :
       {TileAlgorithm::kLargestAbsValuesGreedy, TileAlgorithm::kLargestValuesGreedy,
        TileAlgorithm::kCausal1122}) {
    expect_bitwise_equal(semi_structured_mask(weight, algorithm),
                         semi_structured_mask_reference(weight, algorithm));
  }
}

TEST(TileMask, OptimalKeepsAsMuchAsTheBestOf90PatternsWithTies) {
  const at::Tensor weight = at::randint(-3, 4, {64, 128}).to(at::kBFloat16);
  const auto energy = [&](const at::Tensor& mask) {
    return tiles_of(mask)
        .mul(tiles_of(pack_mask(at::ones({64, 128}, at::kBool))))
        .mul(weight.to(at::kLong).square().view({16, 4, 32, 4}).permute({0, 2, 1, 3}))
        .sum({2, 3});
  };
  expect_bitwise_equal(energy(semi_structured_mask(weight, TileAlgorithm::kOptimal)),
                       energy(semi_structured_mask_reference(weight, TileAlgorithm::kOptimal)));
}

TEST(TileMask, EveryTileOfTheOptimalOneHasTwoPerRowAndColumn) {
  const at::Tensor tiles =
      tiles_of(semi_structured_mask(at::randn({256, 512}), TileAlgorithm::kOptimal));
  EXPECT_TRUE(tiles.sum(2).eq(2).all().item<bool>());
  EXPECT_TRUE(tiles.sum(3).eq(2).all().item<bool>());
}

TEST(TileMask, NoTileOfAnyHasMoreThanTwoPerRowOrColumn) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const TileAlgorithm algorithm : kAlgorithms) {
      for (const float filler : {0.0F, 1.0F, -1.0F, inf, -inf, nan, 1e-40F}) {
        at::Tensor weight = at::randn({32, 64});
        weight = at::where(weight.gt(0.3), at::full({}, filler), weight).to(dtype);
        const at::Tensor tiles = tiles_of(semi_structured_mask(weight, algorithm));
        EXPECT_LE(tiles.sum(2).max().item<int64_t>(), 2) << filler;
        EXPECT_LE(tiles.sum(3).max().item<int64_t>(), 2) << filler;
        if (algorithm == TileAlgorithm::kOptimal) {
          EXPECT_EQ(tiles.sum({2, 3}).min().item<int64_t>(), 8) << filler;
        }
      }
    }
  }
}

// The figures of research: 0.8215 for the best pattern, 0.818 for greedy by absolute value, 0.563
// for greedy by signed value, as the peer does; on Gaussian tiles.
TEST(TileMask, RetainedEnergyOnGaussianTiles) {
  const double optimal = retained_energy(TileAlgorithm::kOptimal);
  const double greedy = retained_energy(TileAlgorithm::kLargestAbsValuesGreedy);
  const double is_signed = retained_energy(TileAlgorithm::kLargestValuesGreedy);
  RecordProperty("optimal", std::to_string(optimal));
  RecordProperty("greedy", std::to_string(greedy));
  EXPECT_GE(optimal, 0.8215);
  EXPECT_GE(greedy, 0.818);
  EXPECT_NEAR(is_signed, 0.563, 0.006);
}

TEST(TileMask, Causal1122KeepsOneOneTwoTwo) {
  const at::Tensor rows =
      tiles_of(semi_structured_mask(at::randn({64, 64}), TileAlgorithm::kCausal1122)).sum(3);
  const std::vector<int64_t> most = {1, 1, 2, 2};
  for (int64_t row = 0; row < 4; ++row) {
    EXPECT_LE(rows.select(2, row).max().item<int64_t>(), most[row]);
    EXPECT_GE(rows.select(2, row).to(at::kFloat).mean().item<double>(), 0.9 * most[row]);
  }
}

TEST(TileMask, BadShapesAndDtypesAreRefused) {
  EXPECT_THROW(semi_structured_mask(at::randn({6, 8}), TileAlgorithm::kOptimal), c10::Error);
  EXPECT_THROW(semi_structured_mask(at::randn({8, 12}), TileAlgorithm::kOptimal), c10::Error);
  EXPECT_THROW(semi_structured_mask(at::randn({8, 8}).to(at::kHalf), TileAlgorithm::kOptimal),
               c10::Error);
  EXPECT_THROW(apply_mask(at::randn({8, 16}), at::zeros({8, 1}, at::kByte)), c10::Error);
}

class PackedTest : public ::testing::TestWithParam<std::tuple<at::ScalarType, int64_t, int64_t>> {};

TEST_P(PackedTest, DecompressIsTheMaskedWeight) {
  const auto [dtype, rows, cols] = GetParam();
  const at::Tensor weight = at::randn({rows, cols}).to(dtype);
  for (const TileAlgorithm algorithm : kAlgorithms) {
    const at::Tensor mask = semi_structured_mask(weight, algorithm);
    const at::Tensor masked = apply_mask(weight, mask);
    expect_bitwise_equal(masked,
                         at::where(unpack_mask(mask), weight, at::zeros({}, weight.options())));
    const SemiStructuredTensor packed = compress(weight, mask);
    EXPECT_EQ(packed.values.nbytes() + packed.metadata.nbytes(),
              weight.nbytes() / 2 + weight.numel() / 8);
    expect_bitwise_equal(decompress(packed), masked);
    const SemiStructuredTensor fused = prune_and_compress(weight, algorithm);
    expect_bitwise_equal(fused.values, packed.values);
    expect_bitwise_equal(fused.metadata, packed.metadata);
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, PackedTest,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16),
                                            ::testing::Values(4, 20),
                                            ::testing::Values(8, 32, 72, 1000)));

TEST(Packed, MetadataHasTwoBitsInEachHalfByteEvenWhereTheMaskHasFewer) {
  const at::Tensor weight = at::randn({4, 16});
  const SemiStructuredTensor packed = compress(weight, at::zeros({4, 2}, at::kByte));
  EXPECT_TRUE(unpack_mask(packed.metadata).view({-1, 4}).sum(1).eq(2).all().item<bool>());
  expect_bitwise_equal(decompress(packed), at::zeros({4, 16}));
}

TEST(Packed, AMaskOfThreeInAGroupIsRefused) {
  for (const int bits : {0x07, 0x70, 0x0d, 0xf0}) {
    at::Tensor mask = at::zeros({4, 2}, at::kByte);
    mask[2][1] = bits;
    EXPECT_THROW(compress(at::randn({4, 16}), mask), c10::Error) << bits;
  }
}

TEST(Packed, MaskBitsRoundTrip) {
  const at::Tensor keep = at::randn({8, 24}).gt(0);
  expect_bitwise_equal(unpack_mask(pack_mask(keep)), keep);
}

class MatvecTest : public ::testing::TestWithParam<std::tuple<int64_t, int64_t, int64_t>> {};

TEST_P(MatvecTest, EqualsTheDenseProduct) {
  const auto [batch, rows, cols] = GetParam();
  const at::Tensor weight = at::randn({rows, cols}).to(at::kBFloat16);
  const at::Tensor x = at::randn({batch, cols}).to(at::kBFloat16);
  const SemiStructuredTensor packed = prune_and_compress(weight, TileAlgorithm::kOptimal);
  const at::Tensor expected = at::mm(x.to(at::kDouble), decompress(packed).to(at::kDouble).t());
  // One rounding to bf16, and fp32 sums of cols / 2 products.
  const at::Tensor magnitude =
      at::mm(x.abs().to(at::kDouble), decompress(packed).abs().to(at::kDouble).t());
  const at::Tensor error = semi_structured_matvec(x, packed).to(at::kDouble).sub(expected).abs();
  const double fp32_sum = static_cast<double>(cols) * 6e-8;
  const at::Tensor bound = expected.abs().mul(1.0 / 256).add(magnitude.mul(fp32_sum));
  EXPECT_TRUE(error.le(bound).all().item<bool>()) << error.sub(bound).max().item<double>();
}

INSTANTIATE_TEST_SUITE_P(Shapes, MatvecTest,
                         ::testing::Combine(::testing::Values(1, 3, 4, 9), ::testing::Values(4, 36),
                                            ::testing::Values(8, 40, 512, 1000)));

}  // namespace
}  // namespace narrowgauge::sparsity

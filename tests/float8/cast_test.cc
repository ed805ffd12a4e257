#include "float8/cast.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/reciprocal.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "float8/formats.h"
#include "tests/support/numerics.h"

namespace narrowgauge::float8 {
namespace {

using narrowgauge::testing::expect_bitwise_equal;
using narrowgauge::testing::sqnr_db;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

using G = ScalingGranularity;
using R = ScaleRounding;

// Every granularity with each of its roundings.
std::vector<CastSpec> specs() {
  std::vector<CastSpec> all;
  for (const auto dtype : {at::kFloat8_e4m3fn, at::kFloat8_e5m2}) {
    for (const G granularity :
         {G::kTensorwise, G::kAxiswise, G::kBlockwise1x128, G::kBlockwise128x128}) {
      all.push_back({dtype, granularity, R::kNone});
      all.push_back({dtype, granularity, R::kPowerOf2});
    }
    all.push_back({dtype, G::kBlockwise1x32, R::kE8m0Floor});
    all.push_back({dtype, G::kBlockwise1x32, R::kE8m0Rceil});
  }
  return all;
}

std::string text(const CastSpec& spec, int64_t dim) {
  return "granularity " + std::to_string(static_cast<int>(spec.granularity)) + ", rounding " +
         std::to_string(static_cast<int>(spec.rounding)) + ", dim " + std::to_string(dim);
}

// The definition, in ATen operators.
Float8TrainingTensor expected_cast(const at::Tensor& x, const CastSpec& spec, int64_t dim) {
  const at::Tensor amax = tensor_to_amax_reference(x, spec.granularity, dim);
  if (spec.granularity != G::kBlockwise1x32) {
    return hp_tensor_and_scale_to_float8_reference(x, amax_to_scale(amax, spec), spec, dim);
  }
  const at::Tensor e8m0 = amax_to_e8m0(amax, spec);
  const at::Tensor scale =
      expand_scales(e8m0_to_scale(e8m0, spec), spec.granularity, dim, x.sizes());
  return {to_fp8_saturated(x.to(at::kFloat).mul(scale), spec.dtype), e8m0, spec.granularity, dim,
          x.scalar_type()};
}

void expect_equal(const Float8TrainingTensor& actual, const Float8TrainingTensor& expected) {
  expect_bitwise_equal(actual.data.view(at::kByte), expected.data.view(at::kByte));
  EXPECT_EQ(actual.inverse_scale.scalar_type(), expected.inverse_scale.scalar_type());
  expect_bitwise_equal(actual.inverse_scale.to(at::kFloat), expected.inverse_scale.to(at::kFloat));
  EXPECT_EQ(actual.granularity, expected.granularity);
  EXPECT_EQ(actual.dim, expected.dim);
  EXPECT_EQ(actual.orig_dtype, expected.orig_dtype);
}

class CastShapeTest : public ::testing::TestWithParam<std::vector<int64_t>> {};

TEST_P(CastShapeTest, EveryCastEqualsItsDefinitionBitForBit) {
  for (const auto dtype : {at::kBFloat16, at::kFloat, at::kHalf}) {
    const at::Tensor x = at::randn(GetParam()).mul(3).to(dtype);
    for (const CastSpec& spec : specs()) {
      const BothDims both = hp_tensor_to_float8_both_dims(x, spec, spec);
      for (const int64_t dim : {0, 1}) {
        SCOPED_TRACE(text(spec, dim));
        const Float8TrainingTensor expected = expected_cast(x, spec, dim);
        expect_equal(hp_tensor_to_float8_dynamic(x, spec, dim), expected);
        expect_equal(dim == 0 ? both.dim0 : both.dim1, expected);
        for (const auto to : {at::kFloat, at::kBFloat16}) {
          expect_bitwise_equal(dequantize(expected, to), dequantize_reference(expected, to));
          expect_bitwise_equal(dequantize(transpose(expected), to),
                               dequantize_reference(expected, to).t().contiguous());
        }
      }
    }
  }
}

TEST_P(CastShapeTest, KnownScalesAndTheAmaxBesideThem) {
  const at::Tensor x = at::randn(GetParam()).to(at::kBFloat16);
  for (const CastSpec& spec : specs()) {
    if (spec.granularity == G::kBlockwise1x32) {
      EXPECT_THROW(hp_tensor_and_scale_to_float8(x, at::zeros({}), spec, 1), c10::Error);
      continue;
    }
    for (const int64_t dim : {0, 1}) {
      SCOPED_TRACE(text(spec, dim));
      // Half of what the values ask for, as a history would give.
      const at::Tensor amax = tensor_to_amax_reference(x, spec.granularity, dim);
      const at::Tensor scale = amax_to_scale(amax.mul(0.5), spec);
      const auto expected = hp_tensor_and_scale_to_float8_reference(x, scale, spec, dim);
      expect_equal(hp_tensor_and_scale_to_float8(x, scale, spec, dim), expected);
      const CastWithAmax with_amax = hp_tensor_and_scale_to_float8_with_amax(x, scale, spec, dim);
      expect_equal(with_amax.tensor, expected);
      expect_bitwise_equal(with_amax.amax, amax);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, CastShapeTest,
                         ::testing::Values(std::vector<int64_t>{0, 7}, std::vector<int64_t>{7, 0},
                                           std::vector<int64_t>{1, 1}, std::vector<int64_t>{5, 3},
                                           std::vector<int64_t>{96, 64},
                                           std::vector<int64_t>{130, 217},
                                           std::vector<int64_t>{256, 384}));

TEST(Cast, OneCastFeedsBothDimsWhereGroupsAllowIt) {
  const at::Tensor x = at::randn({256, 128});
  for (const G granularity : {G::kTensorwise, G::kBlockwise128x128}) {
    const CastSpec spec{at::kFloat8_e4m3fn, granularity};
    const BothDims both = hp_tensor_to_float8_both_dims(x, spec, spec);
    EXPECT_EQ(both.dim0.data.const_data_ptr(), both.dim1.data.const_data_ptr());
    EXPECT_EQ(both.dim0.dim, 0);
    EXPECT_EQ(both.dim1.dim, 1);
  }
  // rowwise_with_gw_hp: the weight is axiswise forward and tensorwise for grad_input.
  const CastSpec forward{at::kFloat8_e4m3fn, G::kAxiswise, R::kPowerOf2};
  const CastSpec backward{at::kFloat8_e4m3fn, G::kTensorwise, R::kPowerOf2};
  const BothDims both = hp_tensor_to_float8_both_dims(x, forward, backward);
  expect_equal(both.dim1, expected_cast(x, forward, 1));
  expect_equal(both.dim0, expected_cast(x, backward, 0));
}

TEST(Cast, KnownScaleForBothDimsIsTheTwoCastsAndTheAmax) {
  const at::Tensor scale = at::full({}, 37.5F);
  for (const auto& [rows, cols] : {std::pair{1, 1}, {130, 77}, {0, 4}}) {
    const at::Tensor x = at::randn({rows, cols}).to(at::kBFloat16);
    const BothDimsWithAmax both = hp_tensor_and_scale_to_float8_both_dims(x, scale, {});
    expect_bitwise_equal(both.amax, tensor_to_amax(x, G::kTensorwise, 1));
    for (const auto* cast : {&both.dim1, &both.dim0}) {
      const int64_t dim = cast == &both.dim1 ? 1 : 0;
      const auto expected = hp_tensor_and_scale_to_float8(x, scale, {}, dim);
      EXPECT_EQ(cast->dim, dim);
      expect_bitwise_equal(cast->data.view(at::kByte), expected.data.view(at::kByte));
      expect_bitwise_equal(cast->inverse_scale, expected.inverse_scale);
    }
  }
  const CastSpec rows{at::kFloat8_e4m3fn, G::kAxiswise};
  EXPECT_THROW(hp_tensor_and_scale_to_float8_both_dims(at::randn({2, 2}), scale, rows), c10::Error);
}

TEST(Cast, ReadableOverDim0SharesOnTheCpuAndRefusesGroupsThatDependOnDim) {
  const at::Tensor x = at::randn({6, 8});
  const auto cast = hp_tensor_to_float8_dynamic(x, {}, 1);
  const auto dim0 = readable_over_dim0(cast);
  EXPECT_EQ(dim0.dim, 0);
  EXPECT_EQ(dim0.data.const_data_ptr(), cast.data.const_data_ptr());
  const CastSpec rows{at::kFloat8_e4m3fn, G::kAxiswise};
  EXPECT_THROW(readable_over_dim0(hp_tensor_to_float8_dynamic(x, rows, 1)), c10::Error);
}

TEST(Cast, ReadsStridedInput) {
  const at::Tensor x = at::randn({64, 200}).to(at::kBFloat16).t();
  for (const CastSpec& spec : specs()) {
    expect_equal(hp_tensor_to_float8_dynamic(x, spec, 1), expected_cast(x.contiguous(), spec, 1));
  }
}

// What torchao's scales do, for every place where a value may stand.
TEST(Cast, InfiniteAmaxGivesZerosAndNanForWhatWasInfinite) {
  const at::Tensor x = at::full({40, 40}, 2.0F);
  x[3][5] = -kInfinity;
  const auto cast = hp_tensor_to_float8_dynamic(x, {}, 1);
  const at::Tensor codes = cast.data.to(at::kFloat);
  EXPECT_TRUE(codes[3][5].isnan().item<bool>());
  EXPECT_EQ(codes.eq(0).sum().item<int64_t>(), 40 * 40 - 1);
  EXPECT_EQ(cast.inverse_scale.item<float>(), kInfinity);
  EXPECT_TRUE(dequantize(cast, at::kFloat).isnan().all().item<bool>());
}

TEST(Cast, NanReachesItsGroupAloneAndIsNeverLost) {
  const at::Tensor x = at::full({130, 40}, 2.0F);
  x[129][39] = kNan;
  const auto all = hp_tensor_to_float8_dynamic(x, {}, 1);
  EXPECT_TRUE(dequantize(all, at::kFloat).isnan().all().item<bool>());
  const auto rows = hp_tensor_to_float8_dynamic(x, {at::kFloat8_e5m2, G::kAxiswise}, 1);
  EXPECT_EQ(dequantize(rows, at::kFloat).isnan().sum().item<int64_t>(), 40);
}

TEST(Cast, ZerosStayZeros) {
  const at::Tensor x = at::zeros({64, 64});
  for (const CastSpec& spec : specs()) {
    expect_bitwise_equal(dequantize(hp_tensor_to_float8_dynamic(x, spec, 1), at::kFloat), x);
  }
}

TEST(Cast, TooLargeForTheScaleSaturates) {
  const at::Tensor x = at::tensor({1e30F, -1e30F, kInfinity, 500.0F}).reshape({2, 2});
  const auto cast = hp_tensor_and_scale_to_float8(x, at::full({}, 1.0F), {}, 1);
  expect_bitwise_equal(cast.data.to(at::kFloat),
                       at::tensor({448.0F, -448.0F, 448.0F, 448.0F}).reshape({2, 2}));
}

// torchao's test_axiswise_dynamic_cast.
TEST(Cast, AxiswiseRoundTripIsAbove25dB) {
  for (const auto rounding : {R::kNone, R::kPowerOf2}) {
    for (const int64_t dim : {0, 1}) {
      const at::Tensor x = at::randn({32, 48}).to(at::kBFloat16);
      const CastSpec spec{at::kFloat8_e4m3fn, G::kAxiswise, rounding};
      EXPECT_GE(sqnr_db(x, dequantize(hp_tensor_to_float8_dynamic(x, spec, dim), at::kBFloat16)),
                25);
    }
  }
}

// torchao's test_fp8_tensor_statistics.
TEST(CastStatistics, CountSaturatedAndUnderflowed) {
  const at::Tensor x = at::randn({64, 64}).abs().add(0.1);
  const auto statistics = [&](float scale) {
    return cast_statistics(x, hp_tensor_and_scale_to_float8(x, at::full({}, scale), {}, 1));
  };
  EXPECT_EQ(statistics(1e9F).saturated_fraction, 1.0);
  EXPECT_EQ(statistics(1e9F).underflowed_fraction, 0.0);
  EXPECT_EQ(statistics(1e-9F).underflowed_fraction, 1.0);
  EXPECT_EQ(statistics(1e-9F).saturated_fraction, 0.0);
}

TEST(CastStatistics, KernelCountsWhatAtenCounts) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const at::ScalarType fp8 : {at::kFloat8_e4m3fn, at::kFloat8_e5m2}) {
      for (const auto& [rows, cols] : {std::pair{1, 1}, {130, 77}, {257, 300}}) {
        const at::Tensor x = at::randn({rows, cols}).mul(at::randn({rows, cols}).mul(6).exp());
        x[0][0].fill_(rows == 1 ? 0.0 : nan);
        const at::Tensor values = x.to(dtype);
        const CastSpec spec{fp8};
        for (const float scale : {1.0F, 1e-6F, 1e4F}) {
          const auto cast = hp_tensor_and_scale_to_float8(values, at::full({}, scale), spec, 1);
          const CastStatistics counted = cast_statistics(values, cast);
          const CastStatistics expected = cast_statistics_reference(values, cast);
          EXPECT_EQ(counted.saturated_fraction, expected.saturated_fraction);
          EXPECT_EQ(counted.underflowed_fraction, expected.underflowed_fraction);
        }
      }
    }
  }
}

TEST(Cast, RefusesScalesOfAnotherShape) {
  const at::Tensor x = at::randn({4, 6});
  const CastSpec spec{at::kFloat8_e4m3fn, G::kAxiswise};
  EXPECT_THROW(hp_tensor_and_scale_to_float8(x, at::zeros({1, 6}), spec, 1), c10::Error);
  EXPECT_THROW(hp_tensor_and_scale_to_float8(x, at::zeros({4, 1}, at::kDouble), spec, 1),
               c10::Error);
  EXPECT_THROW(hp_tensor_to_float8_dynamic(at::randn({4}), spec, 1), c10::Error);
}

}  // namespace
}  // namespace narrowgauge::float8

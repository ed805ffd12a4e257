#include "float8/scaling.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "float8/kernels/scale.h"
#include "tests/support/numerics.h"

namespace narrowgauge::float8 {
namespace {

using narrowgauge::testing::expect_bitwise_equal;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

const std::vector<ScalingGranularity> kGranularities = {
    ScalingGranularity::kTensorwise, ScalingGranularity::kAxiswise,
    ScalingGranularity::kBlockwise1x128, ScalingGranularity::kBlockwise128x128,
    ScalingGranularity::kBlockwise1x32};

CastSpec power_of_2(at::ScalarType dtype) {
  return {dtype, ScalingGranularity::kTensorwise, ScaleRounding::kPowerOf2};
}

CastSpec mx(at::ScalarType dtype, ScaleRounding rounding) {
  return {dtype, ScalingGranularity::kBlockwise1x32, rounding};
}

class AmaxTest : public ::testing::TestWithParam<std::tuple<at::ScalarType, int64_t, int64_t>> {};

TEST_P(AmaxTest, EqualsReferenceForEveryGranularityAndDim) {
  const auto [dtype, rows, cols] = GetParam();
  const at::Tensor x = at::randn({rows, cols}).to(dtype);
  for (const ScalingGranularity granularity : kGranularities) {
    for (const int64_t dim : {0, 1, -1, -2}) {
      expect_bitwise_equal(tensor_to_amax(x, granularity, dim),
                           tensor_to_amax_reference(x, granularity, dim));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, AmaxTest,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16, at::kHalf),
                                            ::testing::Values(0, 1, 33, 128, 300),
                                            ::testing::Values(0, 1, 32, 217)));

TEST(Amax, HasOneGroupForADimensionThatIsSpannedAndEmpty) {
  EXPECT_EQ(tensor_to_amax(at::empty({0, 4}), ScalingGranularity::kTensorwise, 1).dim(), 0);
  EXPECT_EQ(tensor_to_amax(at::empty({0, 4}), ScalingGranularity::kAxiswise, 0).sizes(),
            at::IntArrayRef({1, 4}));
  EXPECT_EQ(tensor_to_amax(at::empty({0, 4}), ScalingGranularity::kAxiswise, 1).sizes(),
            at::IntArrayRef({0, 1}));
}

TEST(Amax, OfAGroupWithNanIsNanAndOthersAreUntouched) {
  const at::Tensor x = at::randn({130, 40});
  x[129][3] = kNan;
  const at::Tensor rows = tensor_to_amax(x, ScalingGranularity::kAxiswise, 1);
  EXPECT_EQ(rows.isnan().sum().item<int64_t>(), 1);
  EXPECT_TRUE(rows[129][0].isnan().item<bool>());
  EXPECT_TRUE(tensor_to_amax(x, ScalingGranularity::kTensorwise, 1).isnan().item<bool>());
  EXPECT_TRUE(tensor_to_amax(x, ScalingGranularity::kAxiswise, 0)[0][3].isnan().item<bool>());
}

TEST(AmaxToScale, DocumentedValuesForZeroTinyInfinityAndNan) {
  const CastSpec spec;
  const at::Tensor scale =
      amax_to_scale(at::tensor({0.0F, 1e-13F, 1e-12F, 448.0F, kInfinity, kNan}), spec);
  const auto* data = scale.const_data_ptr<float>();
  EXPECT_EQ(data[0], 448e12F);
  EXPECT_EQ(data[1], 448e12F);
  EXPECT_NEAR(data[2], 448e12F, 448e12F * 1e-6F);
  EXPECT_EQ(data[3], 1.0F);
  EXPECT_EQ(data[4], 0.0F);
  EXPECT_TRUE(std::isnan(data[5]));
}

TEST(AmaxToScale, IsFiniteForTheSmallestAmaxThatFp16CanNotInvert) {
  // torchao's test_small_amax_float16.
  for (const auto dtype : {at::kFloat8_e4m3fn, at::kFloat8_e5m2}) {
    const double max = dtype == at::kFloat8_e4m3fn ? 448.0 : 57344.0;
    const auto amax = static_cast<float>(max / (65504.0 + 1e-12));
    EXPECT_TRUE(std::isfinite(amax_to_scale(at::tensor({amax}), {dtype}).item<float>()));
  }
}

// Values at, and up to 600 units beside, `factor` times every power of two; every exponent's
// middle; and the special ones.
at::Tensor values_around_powers_of_two(double factor) {
  std::vector<float> values = {0.0F, kInfinity, kNan, 1e-12F, std::numeric_limits<float>::max()};
  for (int exponent = -149; exponent < 128; ++exponent) {
    const auto centre = static_cast<float>(factor * std::ldexp(1.0, exponent));
    if (!std::isfinite(centre)) {
      continue;
    }
    values.push_back(centre * 1.3F);
    const auto bits = std::bit_cast<int32_t>(centre);
    for (int32_t nudge = -600; nudge <= 600; nudge += nudge > -60 && nudge < 60 ? 1 : 20) {
      if (bits + nudge >= 0 && bits + nudge < 0x7f800000) {
        values.push_back(std::bit_cast<float>(bits + nudge));
      }
    }
  }
  return at::tensor(values);
}

TEST(AmaxToScale, KernelEqualsTorchsFormulaBitForBit) {
  for (const auto dtype : {at::kFloat8_e4m3fn, at::kFloat8_e5m2}) {
    const auto format =
        dtype == at::kFloat8_e4m3fn ? kernels::Float8Format::kE4M3 : kernels::Float8Format::kE5M2;
    const at::Tensor amax = values_around_powers_of_two(1.75);
    for (const bool rounded : {false, true}) {
      const at::Tensor scale = at::empty_like(amax);
      const at::Tensor inverse_scale = at::empty_like(amax);
      kernels::amax_to_scale(amax.const_data_ptr<float>(), amax.numel(), format, rounded,
                             scale.mutable_data_ptr<float>(),
                             inverse_scale.mutable_data_ptr<float>());
      const at::Tensor expected =
          amax_to_scale(amax, rounded ? power_of_2(dtype) : CastSpec{dtype});
      expect_bitwise_equal(scale, expected);
      expect_bitwise_equal(inverse_scale, expected.reciprocal());
    }
  }
}

TEST(AmaxToE8m0, KernelEqualsTorchsFormulaBitForBit) {
  for (const auto dtype : {at::kFloat8_e4m3fn, at::kFloat8_e5m2}) {
    const auto format =
        dtype == at::kFloat8_e4m3fn ? kernels::Float8Format::kE4M3 : kernels::Float8Format::kE5M2;
    for (const auto rounding : {ScaleRounding::kE8m0Floor, ScaleRounding::kE8m0Rceil}) {
      for (const double factor : {1.0, 1.75}) {
        const at::Tensor amax = values_around_powers_of_two(factor);
        const at::Tensor scale = at::empty_like(amax);
        const at::Tensor e8m0 = at::empty_like(amax, at::TensorOptions(at::kByte));
        kernels::amax_to_e8m0(amax.const_data_ptr<float>(), amax.numel(), format,
                              rounding == ScaleRounding::kE8m0Rceil,
                              e8m0.mutable_data_ptr<uint8_t>(), scale.mutable_data_ptr<float>());
        const CastSpec spec = mx(dtype, rounding);
        const at::Tensor expected = amax_to_e8m0(amax, spec);
        expect_bitwise_equal(e8m0, expected.view(at::kByte));
        expect_bitwise_equal(scale, e8m0_to_scale(expected, spec));
      }
    }
  }
}

TEST(AmaxToScale, PowerOfTwoBoundariesOfThePeer) {
  // torchao's test_float8_utils, as scales: amax = 448 / scale.
  const at::Tensor scale = amax_to_scale(
      at::tensor({448.0F, 448.0F / (1 + 0x1p-22F), 448.0F * (1 + 0x1p-22F), 448.0F / 3}),
      power_of_2(at::kFloat8_e4m3fn));
  expect_bitwise_equal(scale, at::tensor({1.0F, 1.0F, 0.5F, 2.0F}));
}

TEST(AmaxToE8m0, DocumentedValues) {
  const at::Tensor amax = at::tensor({0.0F, 1.0F, 448.0F, 449.0F, kInfinity, kNan});
  const auto codes = [&](ScaleRounding rounding) {
    return amax_to_e8m0(amax, mx(at::kFloat8_e4m3fn, rounding)).view(at::kByte);
  };
  expect_bitwise_equal(codes(ScaleRounding::kE8m0Floor),
                       at::tensor({0, 119, 127, 127, 247, 255}, at::kByte));
  expect_bitwise_equal(codes(ScaleRounding::kE8m0Rceil),
                       at::tensor({0, 119, 127, 128, 254, 255}, at::kByte));
}

TEST(CastSpec, RefusesWhatDoesNotGoTogether) {
  EXPECT_THROW(check_cast_spec({at::kFloat}), c10::Error);
  EXPECT_THROW(check_cast_spec({at::kFloat8_e4m3fn, ScalingGranularity::kBlockwise1x32}),
               c10::Error);
  EXPECT_THROW(check_cast_spec({at::kFloat8_e4m3fn, ScalingGranularity::kTensorwise,
                                ScaleRounding::kE8m0Floor}),
               c10::Error);
  EXPECT_THROW(amax_to_scale(at::zeros({1}), mx(at::kFloat8_e4m3fn, ScaleRounding::kE8m0Rceil)),
               c10::Error);
  EXPECT_THROW(amax_to_e8m0(at::zeros({1}), CastSpec{}), c10::Error);
  EXPECT_THROW(tensor_to_amax(at::zeros({3}), ScalingGranularity::kAxiswise, 1), c10::Error);
  EXPECT_THROW(tensor_to_amax(at::zeros({3, 3}), ScalingGranularity::kAxiswise, 2), c10::Error);
}

TEST(ExpandScales, RepeatsEachOverItsGroup) {
  const at::Tensor x = at::randn({130, 150});
  const at::Tensor amax = tensor_to_amax(x, ScalingGranularity::kBlockwise128x128, 1);
  const at::Tensor spread =
      expand_scales(amax, ScalingGranularity::kBlockwise128x128, 1, x.sizes());
  EXPECT_EQ(spread.sizes(), x.sizes());
  EXPECT_TRUE(spread.ge(x.abs()).all().item<bool>());
  expect_bitwise_equal(spread[129][149], amax[1][1]);
}

}  // namespace
}  // namespace narrowgauge::float8

#include <ATen/ops/from_blob.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "float8/formats.h"
#include "float8/kernels/cast.h"

namespace narrowgauge::float8::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class FormatTest : public ::testing::TestWithParam<Float8Format> {
 protected:
  at::ScalarType dtype() const {
    return GetParam() == Float8Format::kE4M3 ? at::kFloat8_e4m3fn : at::kFloat8_e5m2;
  }

  // torch's clamp and cast of x * scale.
  std::vector<uint8_t> by_torch(const std::vector<float>& x, float scale) const {
    const auto count = static_cast<int64_t>(x.size());
    const at::Tensor values = at::from_blob(const_cast<float*>(x.data()), {count});
    const at::Tensor codes = to_fp8_saturated(values.mul(scale), dtype());
    const auto* data = static_cast<const uint8_t*>(codes.const_data_ptr());
    return {data, data + count};
  }

  std::vector<uint8_t> by_kernel(const std::vector<float>& x, float scale) const {
    std::vector<uint8_t> codes(x.size());
    const auto count = static_cast<int64_t>(x.size());
    cast(x.data(), 1, count, {1, count}, &scale, GetParam(), codes.data(), nullptr);
    return codes;
  }

  void expect_torchs_codes(const std::vector<float>& x, float scale) const {
    const auto expected = by_torch(x, scale);
    const auto actual = by_kernel(x, scale);
    for (size_t i = 0; i < x.size(); ++i) {
      ASSERT_EQ(actual[i], expected[i])
          << "x " << std::bit_cast<uint32_t>(x[i]) << " (" << x[i] << "), scale " << scale;
    }
  }
};

std::vector<uint16_t> every_bf16() {
  std::vector<uint16_t> values(65536);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<uint16_t>(i);
  }
  return values;
}

std::vector<float> widened(const std::vector<uint16_t>& values) {
  std::vector<float> wide;
  for (const uint16_t value : values) {
    wide.push_back(nn::kernels::to_float(value));
  }
  return wide;
}

TEST_P(FormatTest, EveryBf16TimesScalesIsTorchsSaturatedCast) {
  const auto values = every_bf16();
  const auto wide = widened(values);
  const auto count = static_cast<int64_t>(values.size());
  for (const float scale : {1.0F, 0.37F, 448.0F, 1.7e-5F, 3e30F, 0.0F, kInfinity, kNan}) {
    expect_torchs_codes(wide, scale);
    std::vector<uint8_t> codes(values.size());
    cast(values.data(), 1, count, {1, count}, &scale, GetParam(), codes.data(), nullptr);
    EXPECT_EQ(codes, by_kernel(wide, scale)) << scale;
  }
}

TEST_P(FormatTest, SweepOfFp32IsTorchsSaturatedCast) {
  // Every exponent and sign with mantissas around each rounding point of both formats.
  std::vector<float> x;
  for (uint32_t exponent = 0; exponent < 512; ++exponent) {
    for (uint32_t step = 0; step < 16; ++step) {
      for (const int32_t nudge : {-2, -1, 0, 1, 2}) {
        x.push_back(
            std::bit_cast<float>((exponent << 23) + (step << 19) + static_cast<uint32_t>(nudge)));
      }
    }
  }
  // A stride through all bit patterns that is coprime to their number.
  for (uint32_t bits = 0, i = 0; i < (1U << 21); ++i, bits += 0x9e3779b1U) {
    x.push_back(std::bit_cast<float>(bits));
  }
  expect_torchs_codes(x, 1.0F);
}

TEST_P(FormatTest, ReferenceFindsTheSameCodes) {
  const auto values = every_bf16();
  const auto count = static_cast<int64_t>(values.size());
  const float scale = 0.73F;
  std::vector<uint8_t> codes(values.size());
  cast_reference(values.data(), 1, count, {1, count}, &scale, GetParam(), codes.data(), nullptr);
  EXPECT_EQ(codes, by_kernel(widened(values), scale));
}

TEST_P(FormatTest, EveryCodeDecodesAsInTorchAndReference) {
  std::vector<uint8_t> codes(256);
  for (size_t i = 0; i < codes.size(); ++i) {
    codes[i] = static_cast<uint8_t>(i);
  }
  const at::Tensor expected =
      at::from_blob(codes.data(), {256}, at::TensorOptions(dtype())).to(at::kFloat);
  const float one = 1.0F;
  std::vector<float> wide(256);
  std::vector<float> by_reference(256);
  std::vector<uint16_t> narrow(256);
  decode(codes.data(), 1, 256, {1, 256}, &one, GetParam(), wide.data());
  decode(codes.data(), 1, 256, {1, 256}, &one, GetParam(), narrow.data());
  decode_reference(codes.data(), 1, 256, {1, 256}, &one, GetParam(), by_reference.data());
  for (size_t i = 0; i < codes.size(); ++i) {
    const float value = expected.const_data_ptr<float>()[i];
    ASSERT_EQ(std::isnan(wide[i]), std::isnan(value)) << i;
    ASSERT_EQ(std::isnan(by_reference[i]), std::isnan(value)) << i;
    ASSERT_EQ(std::isnan(nn::kernels::to_float(narrow[i])), std::isnan(value)) << i;
    if (!std::isnan(value)) {
      const auto bits = std::bit_cast<uint32_t>(value);
      ASSERT_EQ(std::bit_cast<uint32_t>(wide[i]), bits) << i;
      ASSERT_EQ(std::bit_cast<uint32_t>(by_reference[i]), bits) << i;
      ASSERT_EQ(std::bit_cast<uint32_t>(nn::kernels::to_float(narrow[i])), bits) << i;
    }
  }
}

TEST_P(FormatTest, CastsFromReferenceOverOddShapesAndGroups) {
  for (const int64_t rows : {1, 3, 37}) {
    for (const int64_t cols : {1, 31, 33, 129, 300}) {
      for (const ScaleGroups groups :
           {ScaleGroups{rows, cols}, ScaleGroups{1, cols}, ScaleGroups{rows, 1}, ScaleGroups{1, 32},
            ScaleGroups{32, 1}, ScaleGroups{16, 128}}) {
        const auto size = static_cast<size_t>(rows * cols);
        std::vector<float> x(size);
        for (size_t i = 0; i < size; ++i) {
          x[i] = std::ldexp(static_cast<float>((i * 7919) % 2003) - 1000.0F,
                            static_cast<int>(i % 23) - 18);
        }
        const int64_t num_groups =
            (rows + groups.rows - 1) / groups.rows * ((cols + groups.cols - 1) / groups.cols);
        std::vector<float> scale(static_cast<size_t>(num_groups));
        for (size_t i = 0; i < scale.size(); ++i) {
          scale[i] = 0.25F + 0.01F * static_cast<float>(i % 100);
        }
        std::vector<uint8_t> codes(size, 0xaa);
        std::vector<uint8_t> expected(size);
        std::vector<float> top(scale.size(), 0.0F);
        std::vector<float> expected_top(scale.size(), 0.0F);
        std::vector<float> top_alone(scale.size(), 0.0F);
        cast(x.data(), rows, cols, groups, scale.data(), GetParam(), codes.data(), top.data());
        amax(x.data(), rows, cols, groups, top_alone.data());
        cast_reference(x.data(), rows, cols, groups, scale.data(), GetParam(), expected.data(),
                       expected_top.data());
        EXPECT_EQ(codes, expected) << rows << " x " << cols;
        EXPECT_EQ(top, expected_top) << rows << " x " << cols;
        EXPECT_EQ(top_alone, expected_top) << rows << " x " << cols;
        std::vector<float> back(size);
        std::vector<float> expected_back(size);
        decode(codes.data(), rows, cols, groups, scale.data(), GetParam(), back.data());
        decode_reference(codes.data(), rows, cols, groups, scale.data(), GetParam(),
                         expected_back.data());
        EXPECT_EQ(back, expected_back) << rows << " x " << cols;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, FormatTest,
                         ::testing::Values(Float8Format::kE4M3, Float8Format::kE5M2));

TEST(Amax, KeepsNanWhereverItStandsAndPrefersItToInfinity) {
  for (size_t at = 0; at < 100; ++at) {
    std::vector<float> x(100, -2.0F);
    x[(at + 50) % 100] = -kInfinity;
    float top = 0;
    amax(x.data(), 1, 100, {1, 100}, &top);
    EXPECT_EQ(top, kInfinity);
    x[at] = kNan;
    top = 0;
    amax(x.data(), 1, 100, {1, 100}, &top);
    EXPECT_TRUE(std::isnan(top)) << at;
    top = 0;
    amax_reference(x.data(), 1, 100, {1, 100}, &top);
    EXPECT_TRUE(std::isnan(top)) << at;
  }
}

TEST(Amax, OfBf16EqualsOfItsFp32) {
  std::vector<uint16_t> values = every_bf16();
  values.resize(0x7f81);  // up to and with infinity
  const auto wide = widened(values);
  const auto count = static_cast<int64_t>(values.size());
  float narrow_top = 0;
  float wide_top = 0;
  amax(values.data(), 1, count, {1, count}, &narrow_top);
  amax(wide.data(), 1, count, {1, count}, &wide_top);
  EXPECT_EQ(narrow_top, wide_top);
  EXPECT_EQ(narrow_top, kInfinity);
}

}  // namespace
}  // namespace narrowgauge::float8::kernels

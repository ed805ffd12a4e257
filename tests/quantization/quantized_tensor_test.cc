#include "quantization/quantized_tensor.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "quantization/e2m1.h"
#include "quantization/scheme.h"
#include "tests/support/numerics.h"

namespace narrowgauge::quantization {
namespace {

using testing::expect_bitwise_equal;

std::vector<QuantizationSpec> all_specs() {
  std::vector<QuantizationSpec> specs;
  for (const std::string& name : scheme_names()) {
    const Scheme scheme = scheme_by_name(name);
    specs.push_back(scheme.weight);
    if (scheme.activation) {
      specs.push_back(*scheme.activation);
    }
  }
  return specs;
}

TEST(QuantizedTensor, HasTheLayoutItSaysForEveryScheme) {
  for (const QuantizationSpec& spec : all_specs()) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      const QuantizedTensor q = quantize(at::randn({6, 256}, dtype), spec);
      EXPECT_NO_THROW(check_quantized_tensor(q)) << describe(spec);
      EXPECT_EQ(q.codes.sizes(), at::IntArrayRef({6, 256}));
      EXPECT_EQ(dequantize(q, dtype).scalar_type(), dtype);
    }
  }
}

TEST(QuantizedTensor, ValuesAreNear) {
  for (const QuantizationSpec& spec : all_specs()) {
    const at::Tensor x = at::randn({6, 256});
    const double expected_db = spec.bits == 4 ? 14.0 : 26.0;
    EXPECT_GT(testing::sqnr_db(x, fake_quantize(x, spec)), expected_db) << describe(spec);
  }
}

TEST(QuantizedTensor, TakesAnyRankStridesAndNoRows) {
  for (const QuantizationSpec& spec : all_specs()) {
    const at::Tensor x = at::randn({2, 3, 256});
    const QuantizedTensor q = quantize(x, spec);
    expect_bitwise_equal(dequantize(q, at::kFloat).reshape({6, 256}),
                         dequantize(quantize(x.reshape({6, 256}), spec), at::kFloat));
    const at::Tensor strided = at::randn({256, 6}).t();
    expect_bitwise_equal(fake_quantize(strided, spec), fake_quantize(strided.contiguous(), spec));
    const QuantizedTensor none = quantize(at::zeros({0, 256}), spec);
    EXPECT_EQ(dequantize(none, at::kFloat).sizes(), at::IntArrayRef({0, 256})) << describe(spec);
  }
}

TEST(QuantizedTensor, ZerosStayZeros) {
  for (const QuantizationSpec& spec : all_specs()) {
    const at::Tensor values = fake_quantize(at::zeros({4, 256}, at::kBFloat16), spec);
    EXPECT_EQ(values.to(at::kFloat).abs().max().item<float>(), 0.0F) << describe(spec);
  }
}

// An invalid number never becomes a plausible one.
TEST(QuantizedTensor, InvalidNumbersAreSeen) {
  for (const QuantizationSpec& spec : all_specs()) {
    for (const double bad :
         {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
          -std::numeric_limits<double>::infinity()}) {
      at::Tensor x = at::randn({4, 256});
      x[1][7] = bad;
      const at::Tensor values = fake_quantize(x, spec);
      EXPECT_FALSE(values.isfinite().all().item<bool>()) << describe(spec) << " with " << bad;
      if (spec.granularity != Granularity::kPerTensor && spec.grid != Grid::kNvfp4) {
        EXPECT_TRUE(values[0].isfinite().all().item<bool>()) << describe(spec);
      }
    }
  }
}

TEST(QuantizedTensor, RowsOfAFusedProjectionAreThatProjection) {
  for (const QuantizationSpec& spec : all_specs()) {
    const at::Tensor x = at::randn({10, 256}, at::kBFloat16);
    const QuantizedTensor q = quantize(x, spec);
    const QuantizedTensor part = rows(q, 4, 7);
    EXPECT_NO_THROW(check_quantized_tensor(part)) << describe(spec);
    expect_bitwise_equal(dequantize(part, at::kBFloat16),
                         dequantize(q, at::kBFloat16).slice(0, 4, 7).contiguous());
  }
}

TEST(QuantizedTensor, ALastDimensionThatGroupsDoNotDivideIsRefused) {
  const Scheme scheme = scheme_by_name("8da4w");
  EXPECT_THROW(quantize(at::zeros({4, 48}), scheme.weight), c10::Error);
  EXPECT_THROW(quantize(at::zeros({}), scheme.weight), c10::Error);
  EXPECT_THROW(quantize(at::zeros({4, 32}, at::kInt), scheme.weight), c10::Error);
}

TEST(QuantizedTensor, ChecksWhatAFileHolds) {
  const QuantizedTensor good = quantize(at::randn({4, 64}), scheme_by_name("8da4w").weight);
  QuantizedTensor bad = good;
  bad.scale = good.scale.slice(1, 0, 1);
  EXPECT_THROW(check_quantized_tensor(bad), c10::Error);
  bad = good;
  bad.codes = good.codes.to(at::kByte);
  EXPECT_THROW(check_quantized_tensor(bad), c10::Error);
  bad = good;
  bad.zero_point = good.scale;
  EXPECT_THROW(check_quantized_tensor(bad), c10::Error);
}

// A code that does not fit its half of a byte would change its neighbour when packed.
TEST(QuantizedTensor, CodesBeyondTheGridAreRefused) {
  for (const QuantizationSpec& spec : all_specs()) {
    const QuantizedTensor good = quantize(at::randn({4, 256}), spec);
    const bool has_free_codes =
        spec.grid == Grid::kAffine ? spec.bits < 8 : good.codes.scalar_type() == at::kByte;
    for (const int code : {-120, 16, 100}) {
      const bool fits = code >= 0 || good.codes.scalar_type() == at::kChar;
      if (!has_free_codes || !fits) {
        continue;
      }
      QuantizedTensor bad = good;
      bad.codes = good.codes.clone();
      bad.codes[2][17].fill_(code);
      EXPECT_THROW(check_quantized_tensor(bad), c10::Error) << describe(spec) << " " << code;
    }
  }
}

// Every code and every midpoint: ties go to the even code, larger values saturate.
TEST(E2m1, RoundsToNearestEven) {
  const at::Tensor codes = at::arange(16, at::kByte);
  const at::Tensor values = from_e2m1(codes);
  expect_bitwise_equal(to_e2m1(values), codes);
  for (int64_t code = 0; code + 1 < 8; ++code) {
    const float low = values[code].item<float>();
    const float high = values[code + 1].item<float>();
    const float middle = (low + high) / 2;
    const auto rounded = [](float x) {
      return to_e2m1(at::full({1}, x, at::kFloat)).item<uint8_t>();
    };
    EXPECT_EQ(rounded(middle), code % 2 == 0 ? code : code + 1);
    EXPECT_EQ(rounded(std::nextafter(middle, 0.0F)), code);
    EXPECT_EQ(rounded(std::nextafter(middle, 7.0F)), code + 1);
    EXPECT_EQ(rounded(-std::nextafter(middle, 7.0F)), code + 9);
  }
  EXPECT_EQ(to_e2m1(at::full({1}, 1e30, at::kFloat)).item<uint8_t>(), 7);
}

}  // namespace
}  // namespace narrowgauge::quantization

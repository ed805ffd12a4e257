// float8/ on a GPU: magnitudes, scales and codes are the CPU's bits; products are those of the
// codes.

#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "float8/cast.h"
#include "float8/scaled_mm.h"
#include "tests/support/numerics.h"

namespace narrowgauge::float8 {
namespace {

using narrowgauge::testing::expect_bitwise_equal;
using narrowgauge::testing::sqnr_db;

constexpr ScalingGranularity kGranularities[] = {
    ScalingGranularity::kTensorwise, ScalingGranularity::kAxiswise,
    ScalingGranularity::kBlockwise1x128, ScalingGranularity::kBlockwise128x128};

// Columns and rows of very different size, some zero.
at::Tensor matrix(int64_t rows, int64_t cols, at::ScalarType dtype) {
  const at::Tensor x = at::randn({rows, cols})
                           .mul(at::randn({rows, 1}).mul(4).exp())
                           .mul(at::randn({1, cols}).exp());
  x[rows / 2].zero_();
  return x.to(dtype);
}

void expect_equal_casts(const Float8TrainingTensor& gpu, const Float8TrainingTensor& cpu) {
  EXPECT_TRUE(gpu.data.is_cuda());
  EXPECT_EQ(gpu.dim, cpu.dim);
  EXPECT_EQ(gpu.orig_dtype, cpu.orig_dtype);
  expect_bitwise_equal(gpu.inverse_scale.cpu(), cpu.inverse_scale);
  expect_bitwise_equal(gpu.data.cpu().contiguous().view(at::kByte),
                       cpu.data.contiguous().view(at::kByte));
}

using Case = std::tuple<at::ScalarType, at::ScalarType, std::pair<int64_t, int64_t>>;
class CastOnGpu : public ::testing::TestWithParam<Case> {};

TEST_P(CastOnGpu, HasTheBitsOfTheCpuInEveryGranularityAndLayout) {
  const auto [dtype, fp8, sizes] = GetParam();
  const at::Tensor x = matrix(sizes.first, sizes.second, dtype);
  for (const ScalingGranularity granularity : kGranularities) {
    for (const ScaleRounding rounding : {ScaleRounding::kNone, ScaleRounding::kPowerOf2}) {
      const CastSpec spec{fp8, granularity, rounding};
      for (const int64_t dim : {1, 0}) {
        SCOPED_TRACE(::testing::Message()
                     << "granularity " << static_cast<int>(granularity) << ", dim " << dim);
        const Float8TrainingTensor gpu = hp_tensor_to_float8_dynamic(x.cuda(), spec, dim);
        expect_equal_casts(gpu, hp_tensor_to_float8_dynamic(x, spec, dim));
        EXPECT_TRUE((dim == 1 ? gpu.data : gpu.data.t()).is_contiguous());
      }
      const BothDims gpu = hp_tensor_to_float8_both_dims(x.cuda(), spec, spec);
      const BothDims cpu = hp_tensor_to_float8_both_dims(x, spec, spec);
      expect_equal_casts(gpu.dim1, cpu.dim1);
      expect_equal_casts(gpu.dim0, cpu.dim0);
      EXPECT_TRUE(gpu.dim1.data.is_contiguous() && gpu.dim0.data.t().is_contiguous());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, CastOnGpu,
    ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16),
                       ::testing::Values(at::kFloat8_e4m3fn, at::kFloat8_e5m2),
                       ::testing::Values(std::pair{1L, 1L}, std::pair{3L, 17L},
                                         std::pair{128L, 128L}, std::pair{130L, 48L},
                                         std::pair{257L, 301L}, std::pair{384L, 1040L})));

// Delayed scaling's cast: both layouts and the amax from one read.
TEST_P(CastOnGpu, KnownScaleGivesBothLayoutsAndTheAmaxOfTheCpu) {
  const auto [dtype, fp8, sizes] = GetParam();
  const at::Tensor x = matrix(sizes.first, sizes.second, dtype);
  const at::Tensor scale = at::full({}, 3.0F);
  const BothDimsWithAmax gpu =
      hp_tensor_and_scale_to_float8_both_dims(x.cuda(), scale.cuda(), {fp8});
  const BothDimsWithAmax cpu = hp_tensor_and_scale_to_float8_both_dims(x, scale, {fp8});
  expect_equal_casts(gpu.dim1, cpu.dim1);
  expect_equal_casts(gpu.dim0, cpu.dim0);
  expect_bitwise_equal(gpu.amax.cpu(), cpu.amax);
  EXPECT_TRUE(gpu.dim1.data.is_contiguous() && gpu.dim0.data.t().is_contiguous());
  const Float8TrainingTensor turned = readable_over_dim0(gpu.dim1);
  expect_equal_casts(turned, cpu.dim0);
  EXPECT_TRUE(turned.data.t().is_contiguous());
  const CastStatistics of_gpu = cast_statistics(x.cuda(), gpu.dim1);
  const CastStatistics of_cpu = cast_statistics(x, cpu.dim1);
  EXPECT_EQ(of_gpu.saturated_fraction, of_cpu.saturated_fraction);
  EXPECT_EQ(of_gpu.underflowed_fraction, of_cpu.underflowed_fraction);
}

// Each amax is a few units from where a power-of-two scale changes.
TEST(ScalesOnGpu, PowersOfTwoAreTheCpusBesideEveryBoundary) {
  std::vector<float> amax;
  for (int exponent = -126; exponent < 127; ++exponent) {
    const float boundary = std::ldexp(448.0F / 512.0F, exponent);
    float above = boundary;
    float below = boundary;
    for (int i = 0; i < 20; ++i) {
      amax.push_back(above);
      amax.push_back(below);
      above = std::nextafter(above, std::numeric_limits<float>::infinity());
      below = std::nextafter(below, 0.0F);
    }
  }
  const auto count = static_cast<int64_t>(amax.size());
  const at::Tensor x = at::from_blob(amax.data(), {count, 1}).clone();
  const CastSpec spec{at::kFloat8_e4m3fn, ScalingGranularity::kAxiswise, ScaleRounding::kPowerOf2};
  expect_bitwise_equal(hp_tensor_to_float8_dynamic(x.cuda(), spec, 1).inverse_scale.cpu(),
                       hp_tensor_to_float8_dynamic(x, spec, 1).inverse_scale);
}

TEST(CastOnGpu, EveryBfloat16IsRoundedAsOnTheCpu) {
  std::vector<int32_t> bits(1 << 16);
  for (int32_t i = 0; i < 1 << 16; ++i) {
    bits[static_cast<size_t>(i)] = static_cast<int32_t>(static_cast<uint32_t>(i) << 16);
  }
  const at::Tensor all = at::from_blob(bits.data(), {256, 256}, at::kInt).view(at::kFloat);
  const at::Tensor one = at::full({}, 1.0F);
  for (const auto fp8 : {at::kFloat8_e4m3fn, at::kFloat8_e5m2}) {
    // Between the codes, too: thirds of every bf16.
    for (const float factor : {1.0F, 1.0F / 3.0F, 1.0009765625F}) {
      const at::Tensor x = all.mul(factor);
      const CastSpec spec{fp8};
      const auto gpu = hp_tensor_and_scale_to_float8(x.cuda(), one.cuda(), spec, 1);
      const auto cpu = hp_tensor_and_scale_to_float8(x, one, spec, 1);
      const at::Tensor is_number = x.eq(x);
      expect_bitwise_equal(gpu.data.cpu().view(at::kByte).masked_select(is_number),
                           cpu.data.view(at::kByte).masked_select(is_number));
      EXPECT_TRUE(gpu.data.to(at::kFloat)
                      .cpu()
                      .masked_select(is_number.logical_not())
                      .isnan()
                      .all()
                      .item<bool>());
    }
  }
}

TEST(AmaxOnGpu, KeepsInfinityAndNanInTheirGroups) {
  const at::Tensor x = at::randn({256, 256}).to(at::kBFloat16);
  x[3][200] = std::numeric_limits<float>::quiet_NaN();
  x[200][7] = -std::numeric_limits<float>::infinity();
  for (const ScalingGranularity granularity : kGranularities) {
    for (const int64_t dim : {0, 1}) {
      const at::Tensor gpu = tensor_to_amax(x.cuda(), granularity, dim).cpu();
      const at::Tensor cpu = tensor_to_amax(x, granularity, dim);
      expect_bitwise_equal(gpu.isnan(), cpu.isnan());
      expect_bitwise_equal(gpu.nan_to_num(0), cpu.nan_to_num(0));
    }
  }
}

using Product = std::tuple<ScalingGranularity, ScalingGranularity, at::ScalarType>;
class ScaledMmOnGpu : public ::testing::TestWithParam<Product> {};

TEST_P(ScaledMmOnGpu, MatchesTheProductOfTheCodes) {
  const auto [of_a, of_b, out_dtype] = GetParam();
  for (const auto& [m, k, n] :
       {std::tuple{64, 128, 256}, std::tuple{33, 384, 80}, std::tuple{1, 16, 16},
        std::tuple{17, 100, 30}, std::tuple{48, 512, 64}}) {
    const at::Tensor a = at::randn({m, k}, at::kCUDA).to(at::kBFloat16);
    const at::Tensor b = at::randn({n, k}, at::kCUDA).to(at::kBFloat16);
    const auto a8 = hp_tensor_to_float8_dynamic(a, {at::kFloat8_e4m3fn, of_a}, 1);
    const auto b8 = hp_tensor_to_float8_dynamic(b, {at::kFloat8_e4m3fn, of_b}, 1);
    const at::Tensor exact = at::mm(dequantize(a8, at::kFloat).to(at::kDouble),
                                    dequantize(b8, at::kFloat).to(at::kDouble).t());
    const at::Tensor y = scaled_mm(a8, b8, out_dtype);
    EXPECT_EQ(y.scalar_type(), out_dtype);
    EXPECT_EQ(y.sizes().vec(), (std::vector<int64_t>{m, n}));
    // bf16 alone rounds at about 55 dB.
    EXPECT_GT(sqnr_db(exact, y), out_dtype == at::kFloat ? 65.0 : 50.0)
        << m << " " << k << " " << n;
  }
}

TEST_P(ScaledMmOnGpu, BiasIsAddedBeforeTheOneRounding) {
  const auto [of_a, of_b, out_dtype] = GetParam();
  for (const auto& [m, k, n] : {std::tuple{64, 128, 256}, std::tuple{17, 100, 30}}) {
    for (const auto bias_dtype : {at::kFloat, at::kBFloat16}) {
      const at::Tensor a = at::randn({m, k}, at::kCUDA).to(at::kBFloat16);
      const at::Tensor b = at::randn({n, k}, at::kCUDA).to(at::kBFloat16);
      const at::Tensor bias = at::randn({n}, at::kCUDA).mul(20).to(bias_dtype);
      const auto a8 = hp_tensor_to_float8_dynamic(a, {at::kFloat8_e4m3fn, of_a}, 1);
      const auto b8 = hp_tensor_to_float8_dynamic(b, {at::kFloat8_e4m3fn, of_b}, 1);
      const at::Tensor exact = at::mm(dequantize(a8, at::kFloat).to(at::kDouble),
                                      dequantize(b8, at::kFloat).to(at::kDouble).t())
                                   .add(bias.to(at::kDouble));
      EXPECT_GT(sqnr_db(exact, scaled_mm(a8, b8, out_dtype, bias)),
                out_dtype == at::kFloat ? 65.0 : 50.0);
    }
  }
}

// Sums in the shorter accumulator lose bits, not more than a dozen of them.
TEST_P(ScaledMmOnGpu, FastAccumulationIsNear) {
  const auto [of_a, of_b, out_dtype] = GetParam();
  const at::Tensor a = at::randn({64, 2048}, at::kCUDA).to(at::kBFloat16);
  const at::Tensor b = at::randn({80, 2048}, at::kCUDA).to(at::kBFloat16);
  const auto a8 = hp_tensor_to_float8_dynamic(a, {at::kFloat8_e4m3fn, of_a}, 1);
  const auto b8 = hp_tensor_to_float8_dynamic(b, {at::kFloat8_e4m3fn, of_b}, 1);
  const at::Tensor exact = at::mm(dequantize(a8, at::kFloat).to(at::kDouble),
                                  dequantize(b8, at::kFloat).to(at::kDouble).t());
  EXPECT_GT(sqnr_db(exact, scaled_mm(a8, b8, out_dtype, {}, /*use_fast_accum=*/true)), 35.0);
}

// What a product reads need not lie as it wants it.
TEST_P(ScaledMmOnGpu, OperandsInTheOtherLayoutAreTurned) {
  const auto [of_a, of_b, out_dtype] = GetParam();
  const at::Tensor a = at::randn({96, 256}, at::kCUDA).to(at::kBFloat16);
  const at::Tensor b = at::randn({64, 256}, at::kCUDA).to(at::kBFloat16);
  const auto a8 = hp_tensor_to_float8_dynamic(a, {at::kFloat8_e4m3fn, of_a}, 1);
  const auto b8 = hp_tensor_to_float8_dynamic(b, {at::kFloat8_e4m3fn, of_b}, 1);
  auto turned = b8;
  turned.data = b8.data.t().contiguous().t();
  expect_bitwise_equal(scaled_mm(a8, turned, out_dtype).cpu(), scaled_mm(a8, b8, out_dtype).cpu());
}

TEST_P(ScaledMmOnGpu, TheThreeProductsOfALinear) {
  const auto [of_x, of_w, out_dtype] = GetParam();
  const at::Tensor x = at::randn({96, 128}, at::kCUDA).to(at::kBFloat16);
  const at::Tensor w = at::randn({64, 128}, at::kCUDA).to(at::kBFloat16);
  const at::Tensor g = at::randn({96, 64}, at::kCUDA).to(at::kBFloat16);
  const CastSpec x_spec{at::kFloat8_e4m3fn, of_x};
  const CastSpec w_spec{at::kFloat8_e4m3fn, of_w};
  const CastSpec g_spec{at::kFloat8_e5m2, of_x};
  const BothDims x8 = hp_tensor_to_float8_both_dims(x, x_spec, x_spec);
  const BothDims w8 = hp_tensor_to_float8_both_dims(w, w_spec, w_spec);
  const BothDims g8 = hp_tensor_to_float8_both_dims(g, g_spec, g_spec);
  const auto exact = [](const at::Tensor& a, const at::Tensor& b) {
    return at::mm(a.to(at::kDouble), b.to(at::kDouble));
  };
  EXPECT_GT(sqnr_db(exact(x, w.t()), scaled_mm(x8.dim1, w8.dim1, out_dtype)), 25.0);
  EXPECT_GT(sqnr_db(exact(g, w), scaled_mm(g8.dim1, transpose(w8.dim0), out_dtype)), 20.0);
  EXPECT_GT(sqnr_db(exact(g.t(), x), scaled_mm(transpose(g8.dim0), transpose(x8.dim0), out_dtype)),
            20.0);
}

INSTANTIATE_TEST_SUITE_P(
    Recipes, ScaledMmOnGpu,
    ::testing::Values(
        Product{ScalingGranularity::kTensorwise, ScalingGranularity::kTensorwise, at::kBFloat16},
        Product{ScalingGranularity::kTensorwise, ScalingGranularity::kTensorwise, at::kFloat},
        Product{ScalingGranularity::kAxiswise, ScalingGranularity::kAxiswise, at::kBFloat16},
        Product{ScalingGranularity::kAxiswise, ScalingGranularity::kAxiswise, at::kFloat},
        Product{ScalingGranularity::kAxiswise, ScalingGranularity::kTensorwise, at::kBFloat16},
        Product{ScalingGranularity::kBlockwise1x128, ScalingGranularity::kBlockwise128x128,
                at::kBFloat16}));

}  // namespace
}  // namespace narrowgauge::float8

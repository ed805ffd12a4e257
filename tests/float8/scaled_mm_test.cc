#include "float8/scaled_mm.h"

#include <ATen/Parallel.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <limits>
#include <tuple>
#include <vector>

#include "float8/cast.h"
#include "tests/support/numerics.h"

namespace narrowgauge::float8 {
namespace {

using narrowgauge::testing::expect_bitwise_equal;
using narrowgauge::testing::expect_close;
using narrowgauge::testing::sqnr_db;
using narrowgauge::testing::tolerance;

using G = ScalingGranularity;
using R = ScaleRounding;

struct Operands {
  CastSpec a;
  CastSpec b;
};

// The pairs of the recipes, and each of their mixtures.
std::vector<Operands> recipes() {
  const auto e4m3 = at::kFloat8_e4m3fn;
  const auto e5m2 = at::kFloat8_e5m2;
  return {{{e4m3, G::kTensorwise}, {e4m3, G::kTensorwise}},
          {{e5m2, G::kTensorwise}, {e4m3, G::kTensorwise}},
          {{e4m3, G::kAxiswise, R::kPowerOf2}, {e4m3, G::kAxiswise, R::kPowerOf2}},
          {{e5m2, G::kAxiswise}, {e4m3, G::kAxiswise}},
          {{e4m3, G::kAxiswise}, {e4m3, G::kTensorwise}},
          {{e4m3, G::kTensorwise}, {e5m2, G::kAxiswise}},
          {{e4m3, G::kBlockwise1x128}, {e4m3, G::kBlockwise128x128}},
          {{e4m3, G::kBlockwise1x128}, {e4m3, G::kBlockwise1x128}},
          {{e4m3, G::kBlockwise128x128}, {e5m2, G::kBlockwise1x128, R::kPowerOf2}},
          {{e4m3, G::kBlockwise1x32, R::kE8m0Floor}, {e4m3, G::kBlockwise1x32, R::kE8m0Floor}},
          {{e4m3, G::kBlockwise1x32, R::kE8m0Rceil}, {e5m2, G::kBlockwise1x32, R::kE8m0Rceil}}};
}

// Sum of the absolute products: what rounding errors of the sums are relative to.
at::Tensor magnitude(const Float8TrainingTensor& a, const Float8TrainingTensor& b) {
  return at::mm(dequantize_reference(a, at::kDouble).abs(),
                dequantize_reference(b, at::kDouble).abs().t());
}

at::Tensor exact(const Float8TrainingTensor& a, const Float8TrainingTensor& b) {
  return at::mm(dequantize_reference(a, at::kFloat).to(at::kDouble),
                dequantize_reference(b, at::kFloat).to(at::kDouble).t());
}

class ScaledMmTest
    : public ::testing::TestWithParam<std::tuple<int64_t, int64_t, int64_t, bool, bool>> {};

TEST_P(ScaledMmTest, EqualsExactProductOfDequantizedOperandsToRounding) {
  const auto [m, n, k, a_strided, b_strided] = GetParam();
  for (const Operands& recipe : recipes()) {
    // A strided operand is one that was cast as [k, rows] for dim 0.
    const auto operand = [&, k = k](const CastSpec& spec, int64_t rows, bool strided) {
      return strided ? transpose(hp_tensor_to_float8_dynamic(at::randn({k, rows}), spec, 0))
                     : hp_tensor_to_float8_dynamic(at::randn({rows, k}), spec, 1);
    };
    const auto a = operand(recipe.a, m, a_strided);
    const auto b = operand(recipe.b, n, b_strided);
    const at::Tensor bias = at::randn({n}).to(at::kBFloat16);
    const at::Tensor product = exact(a, b);
    const at::Tensor terms = magnitude(a, b).add(bias.to(at::kDouble).abs());
    for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      const double allowed = tolerance(dtype == at::kFloat ? at::kFloat : at::kBFloat16, k);
      expect_close(scaled_mm(a, b, dtype), product, allowed, terms);
      expect_close(scaled_mm(a, b, dtype, bias), product.add(bias.to(at::kDouble)), allowed, terms);
    }
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      at::Tensor sum = at::randn({m, n}).to(dtype);
      const at::Tensor expected = product.add(sum.to(at::kDouble));
      const at::Tensor all_terms = terms.add(sum.to(at::kDouble).abs());
      scaled_mm_accumulate(a, b, sum);
      expect_close(sum, expected, tolerance(dtype, k), all_terms);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, ScaledMmTest,
    ::testing::Values(std::tuple{1, 1, 1, false, false}, std::tuple{1, 33, 5, true, false},
                      std::tuple{13, 31, 63, false, true}, std::tuple{12, 32, 64, true, true},
                      std::tuple{97, 65, 129, false, false}, std::tuple{97, 65, 129, true, true},
                      std::tuple{50, 600, 385, false, true}, std::tuple{200, 40, 770, true, false},
                      std::tuple{256, 384, 256, false, false}));

TEST(ScaledMm, EmptyOperandsGiveZerosOrNothing) {
  const auto cast = [](int64_t rows, int64_t cols) {
    return hp_tensor_to_float8_dynamic(at::zeros({rows, cols}), {}, 1);
  };
  EXPECT_EQ(scaled_mm(cast(0, 8), cast(4, 8), at::kFloat).sizes(), at::IntArrayRef({0, 4}));
  expect_bitwise_equal(scaled_mm(cast(3, 0), cast(4, 0), at::kFloat), at::zeros({3, 4}));
  const at::Tensor bias = at::full({4}, 2.0F);
  expect_bitwise_equal(scaled_mm(cast(3, 0), cast(4, 0), at::kFloat, bias), at::full({3, 4}, 2.0F));
}

TEST(ScaledMm, SameBitsWithAnyNumberOfThreads) {
  const auto a = hp_tensor_to_float8_dynamic(at::randn({301, 500}), {}, 1);
  const auto b = hp_tensor_to_float8_dynamic(at::randn({77, 500}), {}, 1);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const at::Tensor one = scaled_mm(a, b, at::kBFloat16);
  at::set_num_threads(3);
  const at::Tensor three = scaled_mm(a, b, at::kBFloat16);
  at::set_num_threads(threads);
  expect_bitwise_equal(one, three);
}

TEST(ScaledMm, NanAndInfinityReachTheirRowAlone) {
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const at::Tensor x = at::randn({20, 64});
    x[7][9] = value;
    const CastSpec rows{at::kFloat8_e4m3fn, G::kAxiswise};
    const auto a = hp_tensor_to_float8_dynamic(x, rows, 1);
    const auto b = hp_tensor_to_float8_dynamic(at::randn({33, 64}), rows, 1);
    const at::Tensor y = scaled_mm(a, b, at::kBFloat16);
    EXPECT_TRUE(y[7].isnan().all().item<bool>());
    EXPECT_EQ(y.isnan().sum().item<int64_t>(), 33);
  }
}

TEST(ScaledMm, RefusesOperandsThatDoNotFit) {
  const auto cast = [](int64_t rows, int64_t cols, CastSpec spec, int64_t dim) {
    return hp_tensor_to_float8_dynamic(at::randn({rows, cols}), spec, dim);
  };
  const CastSpec tensor{};
  const CastSpec rows{at::kFloat8_e4m3fn, G::kAxiswise};
  const CastSpec block{at::kFloat8_e4m3fn, G::kBlockwise1x128};
  EXPECT_THROW(scaled_mm(cast(2, 8, tensor, 1), cast(2, 9, tensor, 1), at::kFloat), c10::Error);
  EXPECT_THROW(scaled_mm(cast(2, 8, rows, 0), cast(2, 8, rows, 1), at::kFloat), c10::Error);
  EXPECT_THROW(scaled_mm(cast(2, 8, block, 1), cast(2, 8, rows, 1), at::kFloat), c10::Error);
  EXPECT_THROW(scaled_mm(cast(2, 8, tensor, 1), cast(2, 8, tensor, 1), at::kFloat, at::zeros({3})),
               c10::Error);
  at::Tensor out = at::zeros({3, 2});
  EXPECT_THROW(scaled_mm_accumulate(cast(2, 8, tensor, 1), cast(2, 8, tensor, 1), out), c10::Error);
}

// The three products of a linear, against fp32: the peer's thresholds for its recipes.
struct LinearCase {
  const char* name;
  CastSpec input, weight, grad_output;
  double output_db, grad_input_db, grad_weight_db;
};

class LinearTest : public ::testing::TestWithParam<LinearCase> {};

TEST_P(LinearTest, OutputAndGradientsAreWithinThePeersThresholds) {
  const LinearCase& c = GetParam();
  const at::Tensor x = at::randn({512, 256}).to(at::kBFloat16);
  const at::Tensor w = at::randn({384, 256}).mul(0.02).to(at::kBFloat16);
  const at::Tensor g = at::randn({512, 384}).mul(1e-3).to(at::kBFloat16);
  const BothDims input = hp_tensor_to_float8_both_dims(x, c.input, c.input);
  const BothDims weight = hp_tensor_to_float8_both_dims(w, c.weight, c.weight);
  const BothDims grad = hp_tensor_to_float8_both_dims(g, c.grad_output, c.grad_output);
  const auto f = [](const at::Tensor& tensor) { return tensor.to(at::kFloat); };
  EXPECT_GE(sqnr_db(at::mm(f(x), f(w).t()), scaled_mm(input.dim1, weight.dim1, at::kBFloat16)),
            c.output_db);
  EXPECT_GE(
      sqnr_db(at::mm(f(g), f(w)), scaled_mm(grad.dim1, transpose(weight.dim0), at::kBFloat16)),
      c.grad_input_db);
  EXPECT_GE(sqnr_db(at::mm(f(g).t(), f(x)),
                    scaled_mm(transpose(grad.dim0), transpose(input.dim0), at::kBFloat16)),
            c.grad_weight_db);
}

constexpr auto kE4M3 = at::kFloat8_e4m3fn;
constexpr auto kE5M2 = at::kFloat8_e5m2;
// torchao: test_linear_from_config_params (18, 17) and test_numerics_integration (20);
// blockwise_fp8_training (25, 30 is its kernel against its own reference) and mxfp8 linear (27, 25,
// 24).
INSTANTIATE_TEST_SUITE_P(
    Recipes, LinearTest,
    ::testing::Values(LinearCase{"tensorwise", {kE4M3}, {kE4M3}, {kE5M2}, 20, 20, 20},
                      LinearCase{"rowwise",
                                 {kE4M3, G::kAxiswise, R::kPowerOf2},
                                 {kE4M3, G::kAxiswise, R::kPowerOf2},
                                 {kE4M3, G::kAxiswise, R::kPowerOf2},
                                 20,
                                 20,
                                 20},
                      LinearCase{"blockwise",
                                 {kE4M3, G::kBlockwise1x128},
                                 {kE4M3, G::kBlockwise128x128},
                                 {kE4M3, G::kBlockwise1x128},
                                 25,
                                 25,
                                 25},
                      LinearCase{"mxfp8_rceil",
                                 {kE4M3, G::kBlockwise1x32, R::kE8m0Rceil},
                                 {kE4M3, G::kBlockwise1x32, R::kE8m0Rceil},
                                 {kE4M3, G::kBlockwise1x32, R::kE8m0Rceil},
                                 27,
                                 25,
                                 24},
                      LinearCase{"mxfp8_floor",
                                 {kE4M3, G::kBlockwise1x32, R::kE8m0Floor},
                                 {kE4M3, G::kBlockwise1x32, R::kE8m0Floor},
                                 {kE4M3, G::kBlockwise1x32, R::kE8m0Floor},
                                 23,
                                 23,
                                 21}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace narrowgauge::float8

#include <ATen/ops/arange.h>
#include <ATen/ops/cholesky.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "quantization/autoquant.h"
#include "quantization/equalization.h"
#include "quantization/gptq.h"
#include "quantization/hqq.h"
#include "quantization/input_statistics.h"
#include "quantization/scheme.h"
#include "tests/support/numerics.h"

namespace narrowgauge::quantization {
namespace {

using testing::expect_bitwise_equal;
using testing::expect_close;

// Inputs as a trained model's: channels of very different sizes that depend on each other.
at::Tensor inputs(int64_t rows, int64_t cols) {
  const at::Tensor mix = at::randn({cols, cols}).div(std::sqrt(static_cast<double>(cols)));
  const at::Tensor sizes = at::randn({cols}).mul(1.5).exp();
  return at::randn({rows, cols}).matmul(mix).mul(sizes);
}

InputStatistics statistics_of(const at::Tensor& x) {
  InputStatistics statistics(x.size(1));
  statistics.add(x);
  return statistics;
}

Scheme intx(int bits, int64_t group, MappingType mapping) {
  return scheme_by_name("intx-weight-only",
                        {.group_size = group, .bits = bits, .mapping = mapping});
}

std::vector<QuantizationSpec> integer_specs() {
  return {scheme_by_name("int4-weight-only", {.group_size = 32}).weight,
          scheme_by_name("int8-dynamic-act-int4-weight", {.group_size = 32}).weight,
          scheme_by_name("int8-weight-only").weight,
          intx(3, 64, MappingType::kSymmetric).weight,
          intx(3, 16, MappingType::kAsymmetric).weight,
          intx(4, kWholeRow, MappingType::kAsymmetric).weight};
}

double output_error(const at::Tensor& x, const at::Tensor& weight, const QuantizedTensor& q) {
  const at::Tensor change = dequantize(q, at::kFloat).sub(weight.to(at::kFloat));
  return x.matmul(change.t()).square().sum().item<double>();
}

TEST(InputStatistics, AreThoseOfAllInputs) {
  const at::Tensor x = at::randn({600, 24});
  InputStatistics statistics(24);
  statistics.add(x.narrow(0, 0, 100).view({2, 50, 24}));
  statistics.add(x.narrow(0, 100, 500).to(at::kFloat));
  EXPECT_EQ(statistics.num_rows(), 600);
  expect_close(statistics.hessian(), x.t().matmul(x).div(600), 1e-4);
  expect_close(statistics.mean_abs(), x.abs().mean(0), 1e-5);
  expect_bitwise_equal(statistics.max_abs(), x.abs().amax(0));
  expect_bitwise_equal(statistics.sample(), x.narrow(0, 0, InputStatistics::kMostSamples));
  const at::Tensor change = at::randn({5, 24});
  const double expected = x.matmul(change.t()).square().sum().item<double>() / 600;
  EXPECT_NEAR(statistics.output_error(change) / expected, 1.0, 1e-4);
}

TEST(InputStatistics, FollowADivisionOfTheInputs) {
  const at::Tensor x = at::randn({80, 16});
  const at::Tensor factor = at::arange(1, 17).to(at::kFloat);
  InputStatistics divided = statistics_of(x);
  divided.divide(factor);
  const InputStatistics expected = statistics_of(x.div(factor));
  expect_close(divided.hessian(), expected.hessian(), 1e-5);
  expect_close(divided.mean_abs(), expected.mean_abs(), 1e-5);
  expect_close(divided.max_abs(), expected.max_abs(), 1e-6);
}

// With inputs that do not depend on each other no column can make up for another.
TEST(Gptq, OfAnIdentityHessianIsRoundToNearest) {
  for (const QuantizationSpec& spec : integer_specs()) {
    SCOPED_TRACE(describe(spec));
    const at::Tensor weight = at::randn({12, 192});
    const QuantizedTensor nearest = quantize(weight, spec);
    const QuantizedTensor q = gptq(weight, factorize(at::eye(192), {}), spec, {});
    check_quantized_tensor(q);
    expect_bitwise_equal(q.scale, nearest.scale);
    // The float domain rounds with stored zero points here, with unrounded ones there.
    if (spec.zero_point_domain != ZeroPointDomain::kFloat) {
      expect_bitwise_equal(q.codes, nearest.codes);
    } else {
      EXPECT_LE(q.codes.to(at::kInt).sub(nearest.codes.to(at::kInt)).abs().max().item<int>(), 1);
    }
  }
}

// The column loop of the authors' code (IST-DASLab/gptq, gptq.py) without blocks, in fp64.
at::Tensor reference_gptq(const at::Tensor& weight, const at::Tensor& hessian, double scale_rows) {
  const int64_t cols = weight.size(1);
  at::Tensor h = hessian.to(at::kDouble).clone();
  h.diagonal().add_(h.diagonal().mean().mul(0.01));
  const at::Tensor upper = h.inverse().cholesky(/*upper=*/true);
  at::Tensor w = weight.to(at::kDouble).clone();
  const at::Tensor result = at::zeros_like(w);
  for (int64_t i = 0; i < cols; ++i) {
    const at::Tensor column = w.select(1, i).clone();
    const at::Tensor rounded = column.div(scale_rows).round().clamp(-8, 7).mul(scale_rows);
    result.select(1, i).copy_(rounded);
    const at::Tensor error = column.sub(rounded).div(upper[i][i]);
    w.narrow(1, i, cols - i)
        .sub_(error.unsqueeze(1).matmul(upper[i].narrow(0, i, cols - i).unsqueeze(0)));
  }
  return result;
}

TEST(Gptq, IsTheAuthorsColumnLoop) {
  const at::Tensor x = inputs(500, 300);  // more than two blocks of columns
  at::Tensor weight = at::randn({6, 300}).clamp(-1, 1);
  // Every row has the same range, so that all have the same scale: 1 / 7.5.
  weight.select(1, 0).fill_(1.0);
  const QuantizationSpec spec = intx(4, kWholeRow, MappingType::kSymmetric).weight;
  const at::Tensor hessian = statistics_of(x).hessian();
  const QuantizedTensor q = gptq(weight, factorize(hessian, {}), spec, {});
  const at::Tensor expected = reference_gptq(weight, hessian, 1 / 7.5);
  // fp32 against fp64: a value that lies between two codes may fall to the other, and what follows
  // it in its row with it; nearly all codes agree, and so does the error.
  const double share =
      dequantize(q, at::kFloat).sub(expected).abs().lt(1e-3).to(at::kDouble).mean().item<double>();
  EXPECT_GT(share, 0.9);
  const double theirs =
      x.to(at::kDouble).matmul(expected.sub(weight).t()).square().sum().item<double>();
  EXPECT_NEAR(output_error(x, weight, q) / theirs, 1.0, 0.05);
}

TEST(Gptq, MovesOutputsLessThanRoundToNearest) {
  const at::Tensor x = inputs(2000, 192);
  const at::Tensor weight = at::randn({48, 192});
  const at::Tensor hessian = statistics_of(x).hessian();
  for (const QuantizationSpec& spec : integer_specs()) {
    SCOPED_TRACE(describe(spec));
    const double nearest = output_error(x, weight, quantize(weight, spec));
    for (const bool act_order : {false, true}) {
      const GptqOptions options{.act_order = act_order};
      const QuantizedTensor q = gptq(weight, factorize(hessian, options), spec, options);
      check_quantized_tensor(q);
      EXPECT_LT(output_error(x, weight, q), 0.9 * nearest) << "act_order " << act_order;
    }
  }
}

TEST(Gptq, TakesDeadChannelsBFloat16AndRankDeficientInputs) {
  at::Tensor x = inputs(20, 64);
  x.select(1, 7).zero_();
  const at::Tensor weight = at::randn({8, 64}, at::kBFloat16);
  const QuantizationSpec spec = scheme_by_name("int4-weight-only", {.group_size = 32}).weight;
  const QuantizedTensor q = gptq(weight, factorize(statistics_of(x).hessian(), {}), spec, {});
  check_quantized_tensor(q);
  EXPECT_EQ(q.scale.scalar_type(), at::kBFloat16);
  EXPECT_LT(output_error(x, weight, q), output_error(x, weight, quantize(weight, spec)));
  EXPECT_LT(dequantize(q, at::kFloat).sub(weight).select(1, 7).abs().max().item<double>(), 1.0);
}

TEST(Gptq, RefusesWhatItCannotRound) {
  const GptqFactor factor = factorize(at::eye(64), {});
  EXPECT_THROW(gptq(at::randn({4, 64}), factor, scheme_by_name("mxfp4").weight, {}), c10::Error);
  EXPECT_THROW(gptq(at::randn({4, 32}), factor, intx(4, 32, MappingType::kSymmetric).weight, {}),
               c10::Error);
  at::Tensor bad = at::eye(8);
  bad[0][0] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(factorize(bad, {}), c10::Error);
}

TEST(Hqq, NeverHasALargerErrorThanRoundToNearest) {
  for (const QuantizationSpec& spec : integer_specs()) {
    SCOPED_TRACE(describe(spec));
    // Heavy tails: the range is far from what fits the bulk.
    const at::Tensor weight = at::randn({16, 192}).pow(3);
    const auto error_of = [&](const QuantizedTensor& q) {
      return dequantize(q, at::kFloat).sub(weight).square().sum().item<double>();
    };
    const QuantizedTensor q = hqq(weight, spec);
    check_quantized_tensor(q);
    const double nearest = error_of(quantize(weight, spec));
    // Rounding of stored values may move either by a little.
    EXPECT_LE(error_of(q), nearest * 1.001);
    // An integer zero point moves by whole codes, which seldom fits the bulk better.
    if (spec.bits <= 4 && spec.zero_point_domain != ZeroPointDomain::kInt) {
      EXPECT_LT(error_of(q), nearest * 0.98);
    }
  }
}

TEST(Awq, ProtectsTheChannelsOfLargeInputs) {
  const at::Tensor x = inputs(2000, 128);
  const at::Tensor weight = at::randn({32, 128});
  const InputStatistics statistics = statistics_of(x);
  const QuantizationSpec spec = intx(3, 64, MappingType::kAsymmetric).weight;
  const AwqScale scale = awq_scale(weight, statistics, statistics.mean_abs(), spec);
  EXPECT_GT(scale.alpha, 0.0);
  EXPECT_LT(scale.error, 0.8 * scale.nearest_error);
  // The error it states is that of the outputs.
  const at::Tensor rounded = fake_quantize(weight.mul(scale.factor), spec).div(scale.factor);
  const double error = x.matmul(rounded.sub(weight).t()).square().sum().item<double>() / 2000;
  EXPECT_NEAR(scale.error / error, 1.0, 1e-3);
  EXPECT_NEAR(scale.factor.max().mul(scale.factor.min()).item<double>(), 1.0, 1e-4);
}

TEST(Awq, ClippingMovesOutputsLess) {
  const at::Tensor x = inputs(1000, 128);
  const at::Tensor weight = at::randn({32, 128}).pow(3);
  for (const QuantizationSpec& spec :
       {intx(3, 32, MappingType::kSymmetric).weight, intx(3, 64, MappingType::kAsymmetric).weight,
        scheme_by_name("int4-weight-only", {.group_size = 64}).weight}) {
    SCOPED_TRACE(describe(spec));
    const QuantizedTensor q = quantize_clipped(weight, statistics_of(x), spec);
    check_quantized_tensor(q);
    EXPECT_LT(output_error(x, weight, q), output_error(x, weight, quantize(weight, spec)));
  }
}

TEST(SmoothQuant, EvensOutInputsAndWeights) {
  const at::Tensor weight = at::randn({32, 16});
  const at::Tensor x = inputs(200, 16);
  const at::Tensor max_abs = x.abs().amax(0);
  const at::Tensor factor = smooth_quant_scale(weight, max_abs, 0.5);
  // With alpha 1/2 both sides end with the same largest value in each channel.
  expect_close(x.div(factor).abs().amax(0), weight.mul(factor).abs().amax(0), 1e-5);
  const at::Tensor dead = smooth_quant_scale(at::zeros({4, 3}), at::zeros({3}), 0.5);
  EXPECT_TRUE(dead.isfinite().all().item<bool>());
  EXPECT_TRUE(dead.gt(0).all().item<bool>());
}

TEST(Autoquant, ChoosesTheFastestWithinTheBudget) {
  const at::Tensor weight = at::randn({64, 128});
  const InputStatistics statistics = statistics_of(at::randn({300, 128}));
  const std::vector<Scheme> candidates = {scheme_by_name("int4-weight-only", {.group_size = 32}),
                                          scheme_by_name("int8-weight-only")};
  for (const double budget : {0.0, 30.0, 1000.0}) {
    Autoquant autoquant(candidates, budget, 1);
    const auto scheme = autoquant.choose("a", weight, statistics);
    autoquant.choose("b", weight.mul(2), statistics);
    ASSERT_EQ(autoquant.choices().size(), 2U);
    const AutoquantChoice& choice = autoquant.choices()[0];
    ASSERT_EQ(choice.trials.size(), 3U);
    EXPECT_EQ(choice.trials[0].scheme, "none");
    EXPECT_GT(choice.trials[2].sqnr_db, choice.trials[1].sqnr_db + 15);
    EXPECT_GT(choice.trials[1].sqnr_db, 15);
    EXPECT_LT(choice.trials[1].sqnr_db, 30);
    const SchemeTrial& chosen = choice.trials[choice.chosen];
    EXPECT_EQ(scheme ? scheme->name : "none", chosen.scheme);
    EXPECT_GE(chosen.sqnr_db, budget);
    for (const SchemeTrial& trial : choice.trials) {
      EXPECT_TRUE(trial.sqnr_db < budget || trial.seconds >= chosen.seconds);
    }
    // Times are a shape's.
    EXPECT_EQ(autoquant.choices()[1].trials[1].seconds, choice.trials[1].seconds);
    EXPECT_NE(autoquant_table(autoquant.choices()).find("int8-weight-only"), std::string::npos);
  }
}

}  // namespace
}  // namespace narrowgauge::quantization

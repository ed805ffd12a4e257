#include "nn/normal_init.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/support/numerics.h"

namespace narrowgauge::nn {
namespace {

using narrowgauge::testing::expect_bitwise_equal;

at::Tensor filled(int64_t count, uint64_t seed, const std::string& fqn, int64_t first = 0,
                  at::ScalarType dtype = at::kFloat) {
  const at::Tensor values = at::empty({count}, dtype);
  fill_normal(values, seed, fqn, first, 0.0, 1.0);
  return values;
}

TEST(FillNormal, ShardsEqualSlicesOfTheFullParameter) {
  const at::Tensor full = filled(5000, 42, "layers.0.mlp.gate_up_proj.weight");
  for (const int64_t first : {0, 1, 2, 3, 4, 511, 512, 513, 2049, 4999}) {
    for (const int64_t count : {1, 2, 5, 600}) {
      const int64_t length = std::min(count, 5000 - first);
      expect_bitwise_equal(filled(length, 42, "layers.0.mlp.gate_up_proj.weight", first),
                           full.narrow(0, first, length));
    }
  }
  EXPECT_EQ(filled(0, 42, "w", 7).numel(), 0);
}

TEST(FillNormal, LargeIndicesWork) {
  const int64_t far = (int64_t{1} << 40) + 3;
  expect_bitwise_equal(filled(10, 1, "w", far + 5), filled(15, 1, "w", far).narrow(0, 5, 10));
  EXPECT_FALSE(filled(64, 1, "w", int64_t{1} << 34).equal(filled(64, 1, "w", 0)));
}

TEST(FillNormal, BitsDoNotDependOnTheNumberOfThreads) {
  const int threads_before = at::get_num_threads();
  at::set_num_threads(1);
  const at::Tensor one = filled(300001, 9, "w");
  at::set_num_threads(3);
  const at::Tensor three = filled(300001, 9, "w");
  at::set_num_threads(threads_before);
  expect_bitwise_equal(three, one);
}

TEST(FillNormal, Bf16IsTheRoundedFp32Value) {
  expect_bitwise_equal(filled(1000, 3, "w", 2, at::kBFloat16),
                       filled(1000, 3, "w", 2).to(at::kBFloat16));
}

TEST(FillNormal, MeanAndDeviationAreApplied) {
  const at::Tensor values = at::empty({200000});
  fill_normal(values, 5, "w", 0, 3.0, 0.02);
  const at::Tensor wide = values.to(at::kDouble);
  EXPECT_NEAR(wide.mean().item<double>(), 3.0, 5 * 0.02 / std::sqrt(200000.0));
  EXPECT_NEAR(wide.std().item<double>(), 0.02, 5 * 0.02 / std::sqrt(400000.0));
}

// Five standard errors each: 6 E x^2 - type moments of a million standard normal values.
TEST(FillNormal, MomentsAreThoseOfANormal) {
  constexpr double kCount = 1 << 20;
  const at::Tensor x = filled(1 << 20, 123, "embed_tokens.weight").to(at::kDouble);
  const auto moment = [&](int64_t power) { return x.pow(power).mean().item<double>(); };
  EXPECT_NEAR(moment(1), 0.0, 5 * std::sqrt(1 / kCount));
  EXPECT_NEAR(moment(2), 1.0, 5 * std::sqrt(2 / kCount));
  EXPECT_NEAR(moment(3), 0.0, 5 * std::sqrt(15 / kCount));
  EXPECT_NEAR(moment(4), 3.0, 5 * std::sqrt(96 / kCount));
}

// Kolmogorov-Smirnov: sqrt(n) D is below 1.95 with probability 0.999.
TEST(FillNormal, DistributionIsNormal) {
  const at::Tensor x = filled(200000, 77, "norm.weight");
  std::vector<float> sorted(x.const_data_ptr<float>(), x.const_data_ptr<float>() + x.numel());
  std::sort(sorted.begin(), sorted.end());
  const auto n = static_cast<double>(sorted.size());
  double distance = 0;
  for (size_t i = 0; i < sorted.size(); ++i) {
    const double cdf = 0.5 * std::erfc(-static_cast<double>(sorted[i]) / std::sqrt(2.0));
    distance = std::max({distance, std::abs(cdf - static_cast<double>(i) / n),
                         std::abs(cdf - static_cast<double>(i + 1) / n)});
  }
  EXPECT_LT(std::sqrt(n) * distance, 1.95);
}

// Streams of neighbouring seeds and names, and neighbours within a stream, are uncorrelated: |r|
// below 5 / sqrt(n).
TEST(FillNormal, StreamsAreUncorrelated) {
  constexpr int64_t kCount = 1 << 18;
  const at::Tensor x = filled(kCount, 1, "layers.0.weight");
  const auto correlation = [&](const at::Tensor& y) {
    return std::abs(x.narrow(0, 0, y.numel()).to(at::kDouble).mul(y).mean().item<double>());
  };
  const double bound = 5 / std::sqrt(static_cast<double>(kCount));
  EXPECT_LT(correlation(filled(kCount, 2, "layers.0.weight")), bound);
  EXPECT_LT(correlation(filled(kCount, 1, "layers.1.weight")), bound);
  for (const int64_t lag : {1, 2, 3, 4, 128}) {
    EXPECT_LT(correlation(x.narrow(0, lag, kCount - lag)), bound) << "lag " << lag;
  }
}

// From an fp64 Philox4x32-10 and Box-Muller written down separately. A change here changes every
// model that a seed stands for.
TEST(FillNormal, ValuesAreThoseOfTheDefinition) {
  narrowgauge::testing::expect_close(filled(4, 42, "embed_tokens.weight"),
                                     at::tensor({-0.05564992224069652, 0.3339869195942137,
                                                 -0.20005114298481314, 0.598135755406744},
                                                at::kDouble),
                                     0x1p-21);
}

TEST(FillNormal, WrongArgumentsAreRefused) {
  EXPECT_THROW(fill_normal(at::empty({4, 4}).t(), 1, "w", 0, 0, 1), c10::Error);
  EXPECT_THROW(fill_normal(at::empty({4}, at::kDouble), 1, "w", 0, 0, 1), c10::Error);
  EXPECT_THROW(fill_normal(at::empty({4}), 1, "w", -1, 0, 1), c10::Error);
}

}  // namespace
}  // namespace narrowgauge::nn

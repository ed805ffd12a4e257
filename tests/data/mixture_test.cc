#include "data/mixture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include "tests/data/temporary_directory.h"

namespace narrowgauge::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Mixture, EveryBlockHoldsEachSourceInItsShare) {
  const Mixture mixture({0.7, 0.2, 0.1}, 3);
  EXPECT_THAT(mixture.shares(), ElementsAre(7000, 2000, 1000));
  for (const int64_t block : {0, 1, 1'000'000'000}) {
    std::vector<std::set<int64_t>> samples(3);
    for (int64_t i = 0; i < Mixture::kBlock; ++i) {
      const auto [source, sample] = mixture.pick(block * Mixture::kBlock + i);
      EXPECT_TRUE(samples[source].insert(sample).second);
    }
    // The samples of a source go on where those of the block before ended.
    for (size_t source = 0; source < 3; ++source) {
      const int64_t share = mixture.shares()[source];
      EXPECT_EQ(static_cast<int64_t>(samples[source].size()), share);
      EXPECT_EQ(*samples[source].begin(), block * share);
      EXPECT_EQ(*samples[source].rbegin(), (block + 1) * share - 1);
    }
  }
}

TEST(Mixture, RoundsByTheLargestRemainder) {
  for (const std::vector<double>& weights :
       std::vector<std::vector<double>>{{1, 1, 1}, {1e-3, 1, 3}, {5}, {1e11, 3e10, 1e8, 7e7}}) {
    const Mixture mixture(weights, 0);
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    int64_t all = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      EXPECT_LT(
          std::abs(static_cast<double>(mixture.shares()[i]) - weights[i] / sum * Mixture::kBlock),
          1.0);
      all += mixture.shares()[i];
    }
    EXPECT_EQ(all, Mixture::kBlock);
  }
}

TEST(Mixture, MixesWithinABlockAndDependsOnTheSeed) {
  const auto first = [](uint64_t seed) {
    const Mixture mixture({1, 1}, seed);
    std::vector<size_t> sources;
    for (int64_t i = 0; i < 1000; ++i) sources.push_back(mixture.pick(i).source);
    return sources;
  };
  EXPECT_EQ(first(1), first(1));
  EXPECT_NE(first(1), first(2));
  // 500 +- 6 standard deviations of a draw without replacement.
  const std::vector<size_t> sources = first(1);
  EXPECT_NEAR(static_cast<double>(std::count(sources.begin(), sources.end(), 1u)), 500, 95);
}

TEST(Mixture, RefusesWeightsThatMeanNothing) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  for (const std::vector<double>& weights :
       std::vector<std::vector<double>>{{}, {0}, {1, -1}, {nan}, {1, infinity}}) {
    EXPECT_THAT(error_of([&] { Mixture mixture(weights, 0); }), HasSubstr("weights above 0"));
  }
  EXPECT_THAT(error_of([] { Mixture mixture({1, 1e6}, 0); }), HasSubstr("source 1; leave it out"));
}

}  // namespace
}  // namespace narrowgauge::data

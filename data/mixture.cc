#include "data/mixture.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>

#include "data/mix64.h"
#include "data/window_order.h"

namespace narrowgauge::data {
namespace {

constexpr uint64_t kMixtureKey = 0x6D69787475726573;  // apart from every other use of the seed

// Shares of `block` in proportion to `weights`, rounded by the largest remainder.
std::vector<int64_t> round_shares(const std::vector<double>& weights, int64_t block) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<int64_t> shares;
  std::vector<size_t> order(weights.size());
  std::vector<double> remainders;
  for (const double weight : weights) {
    const double exact = weight / sum * static_cast<double>(block);
    shares.push_back(static_cast<int64_t>(exact));
    remainders.push_back(exact - std::floor(exact));
  }
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return remainders[a] > remainders[b]; });
  const int64_t given = std::accumulate(shares.begin(), shares.end(), int64_t{0});
  for (int64_t i = 0; i < block - given; ++i) ++shares[order[i % order.size()]];
  return shares;
}

}  // namespace

Mixture::Mixture(const std::vector<double>& weights, uint64_t seed) : seed_(seed) {
  const bool is_valid =
      !weights.empty() && std::all_of(weights.begin(), weights.end(),
                                      [](double weight) { return weight > 0 && weight < 1e12; });
  if (!is_valid) {
    throw std::invalid_argument("expected weights above 0 and below 1e12, one for each source");
  }
  shares_ = round_shares(weights, kBlock);
  const auto none = std::find(shares_.begin(), shares_.end(), 0);
  if (none != shares_.end()) {
    throw std::invalid_argument(
        "expected weights of at least 1/10000 of their sum, got a smaller "
        "one for source " +
        std::to_string(none - shares_.begin() + 1) + "; leave it out");
  }
}

Mixture::Pick Mixture::pick(int64_t sample) const {
  const int64_t block = sample / kBlock;
  const Permutation order(kBlock, mix64(mix64(seed_, kMixtureKey), static_cast<uint64_t>(block)));
  auto place = static_cast<int64_t>(order(static_cast<uint64_t>(sample % kBlock)));
  size_t source = 0;
  for (; place >= shares_[source]; ++source) place -= shares_[source];
  return {source, block * shares_[source] + place};
}

}  // namespace narrowgauge::data

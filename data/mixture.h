#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace narrowgauge::data {

// Which of several sources each sample of a run comes from: a function of (seed, sample) alone, so
// that any step is reached at once and nothing depends on the number of ranks. Every kBlock samples
// hold each source in its share exactly, in an order of their own.
class Mixture {
 public:
  static constexpr int64_t kBlock = 10'000;

  // weights: of any sum, each above 0. Throws std::invalid_argument for others, and for one whose
  // share comes to nothing in kBlock samples.
  Mixture(const std::vector<double>& weights, uint64_t seed);

  struct Pick {
    size_t source = 0;
    int64_t sample = 0;  // how many samples of this source come before it
  };
  // REQUIRES: sample >= 0.
  Pick pick(int64_t sample) const;

  // Of source i in a block of kBlock samples.
  const std::vector<int64_t>& shares() const { return shares_; }

 private:
  std::vector<int64_t> shares_;
  uint64_t seed_;
};

}  // namespace narrowgauge::data

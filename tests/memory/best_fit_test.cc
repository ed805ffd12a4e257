#include "memory/best_fit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace narrowgauge::memory {
namespace {

TEST(BestFit, TakesTheSmallestRangeThatHolds) {
  BestFit ranges(100);
  EXPECT_EQ(ranges.take(30), 0U);
  EXPECT_EQ(ranges.take(10), 30U);
  EXPECT_EQ(ranges.take(20), 40U);
  EXPECT_EQ(ranges.take(5), 60U);
  ranges.give_back(0, 30);
  ranges.give_back(40, 20);
  EXPECT_EQ(ranges.take(20), 40U);
  EXPECT_EQ(ranges.take(21), 0U);
  EXPECT_EQ(ranges.take(36), std::nullopt);
  EXPECT_EQ(ranges.take(35), 65U);
}

TEST(BestFit, NeighboursBecomeOneRange) {
  for (const auto& order : std::vector<std::vector<int>>{{0, 1, 2}, {2, 1, 0}, {0, 2, 1}}) {
    BestFit ranges(30);
    for (int i = 0; i < 3; ++i) {
      ASSERT_EQ(ranges.take(10), static_cast<uint64_t>(10 * i));
    }
    EXPECT_EQ(ranges.take(1), std::nullopt);
    for (const int i : order) {
      ranges.give_back(static_cast<uint64_t>(10 * i), 10);
    }
    EXPECT_EQ(ranges.take(30), 0U);
  }
}

TEST(BestFit, NothingFitsIntoNothing) { EXPECT_EQ(BestFit(0).take(1), std::nullopt); }

// Beside an array of bytes, in which the best range is searched.
TEST(BestFit, RandomOrderAsByteByByte) {
  constexpr uint64_t kCapacity = 400;
  std::mt19937 random(7);
  for (int round = 0; round < 20; ++round) {
    BestFit ranges(kCapacity);
    std::vector<bool> is_taken(kCapacity);
    std::vector<std::pair<uint64_t, uint64_t>> blocks;
    for (int step = 0; step < 500; ++step) {
      if (!blocks.empty() && random() % 5 < 2) {
        const size_t which = random() % blocks.size();
        const auto [offset, size] = blocks[which];
        blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(which));
        ranges.give_back(offset, size);
        std::fill_n(is_taken.begin() + static_cast<std::ptrdiff_t>(offset), size, false);
        continue;
      }
      const uint64_t size = 1 + random() % 60;
      std::optional<uint64_t> best;
      uint64_t best_size = kCapacity + 1;
      for (uint64_t begin = 0; begin < kCapacity;) {
        uint64_t end = begin;
        while (end < kCapacity && !is_taken[end]) {
          ++end;
        }
        if (end - begin >= size && end - begin < best_size) {
          best = begin;
          best_size = end - begin;
        }
        begin = std::max(end, begin + 1);
      }
      const std::optional<uint64_t> offset = ranges.take(size);
      ASSERT_EQ(offset, best) << "round " << round << ", step " << step;
      if (offset) {
        blocks.emplace_back(*offset, size);
        std::fill_n(is_taken.begin() + static_cast<std::ptrdiff_t>(*offset), size, true);
      }
    }
  }
}

}  // namespace
}  // namespace narrowgauge::memory

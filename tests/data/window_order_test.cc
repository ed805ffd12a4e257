#include "data/window_order.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <vector>

#include "tests/data/temporary_directory.h"

namespace narrowgauge::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<uint64_t> images(uint64_t size, uint64_t key) {
  const Permutation permutation(size, key);
  std::vector<uint64_t> values(size);
  for (uint64_t i = 0; i < size; ++i) values[i] = permutation(i);
  return values;
}

bool is_bijection(std::vector<uint64_t> values) {
  std::sort(values.begin(), values.end());
  for (uint64_t i = 0; i < values.size(); ++i) {
    if (values[i] != i) return false;
  }
  return true;
}

TEST(Permutation, IsABijectionOfEverySmallSize) {
  for (uint64_t size = 1; size <= 300; ++size) EXPECT_TRUE(is_bijection(images(size, size)));
}

RC_GTEST_PROP(Permutation, IsABijection, (uint64_t key)) {
  RC_ASSERT(is_bijection(images(*rc::gen::inRange<uint64_t>(1, 20'000), key)));
}

TEST(Permutation, StaysInsideAHugeSize) {
  const uint64_t size = (uint64_t{1} << 62) + 12345;
  const Permutation permutation(size, 7);
  std::set<uint64_t> seen;
  for (uint64_t i = 0; i < 10'000; ++i) seen.insert(permutation(size - 1 - i));
  EXPECT_EQ(seen.size(), 10'000u);
  EXPECT_LT(*seen.rbegin(), size);
}

TEST(Permutation, LooksRandom) {
  constexpr int kSize = 1000;
  constexpr int kKeys = 2000;
  // Where element 0 lands, over keys: ten bins of expectation 200, standard deviation 13.4.
  std::vector<int> bins(10);
  double correlation = 0;  // of the images of neighbours: expectation 0, deviation 0.0007
  for (int key = 0; key < kKeys; ++key) {
    const auto values = images(kSize, key);
    ++bins[values[0] * 10 / kSize];
    for (int i = 0; i + 1 < kSize; ++i) {
      correlation += (values[i] / 999.0 - 0.5) * (values[i + 1] / 999.0 - 0.5) * 12;
    }
  }
  correlation /= kKeys * double{kSize - 1};
  for (const int count : bins) EXPECT_NEAR(count, 200, 5 * 13.4);
  // Without replacement, neighbours are slightly anticorrelated: -1 / (size - 1).
  EXPECT_NEAR(correlation, -1.0 / (kSize - 1), 5 * 0.0007);
}

// The order is part of every checkpoint: a run resumes at a step, with whatever this gives there.
TEST(WindowOrder, NeverChanges) {
  const WindowOrder order(1000, 16, 42, true);
  std::vector<int64_t> begins;
  for (int64_t sample = 0; sample < 6; ++sample) begins.push_back(order.window_begin(sample));
  EXPECT_THAT(begins, ElementsAre(668, 92, 108, 156, 284, 364));
  EXPECT_EQ(order.window_begin(1'000'000'007), 84);
}

RC_GTEST_PROP(WindowOrder, CoversEachWindowOncePerEpoch, (uint64_t seed)) {
  const auto seq_len = *rc::gen::inRange<int64_t>(1, 40);
  const auto num_tokens = *rc::gen::inRange<int64_t>(seq_len + 1, 3000);
  const auto epoch = *rc::gen::inRange<int64_t>(0, 1'000'000);
  const WindowOrder order(num_tokens, seq_len, seed, true);
  const int64_t n = order.windows_per_epoch();
  RC_ASSERT(n >= 1);
  RC_ASSERT(n >= num_tokens / seq_len - 1);
  std::vector<int64_t> begins;
  for (int64_t i = 0; i < n; ++i) begins.push_back(order.window_begin(epoch * n + i));
  std::sort(begins.begin(), begins.end());
  RC_ASSERT(begins.front() >= 0);
  RC_ASSERT(begins.front() < seq_len);
  RC_ASSERT(begins.back() + seq_len + 1 <= num_tokens);
  for (int64_t i = 0; i < n; ++i) RC_ASSERT(begins[i] == begins[0] + i * seq_len);
}

TEST(WindowOrder, ShiftsAndShufflesEachEpoch) {
  const WindowOrder order(1000, 16, 1, true);
  const int64_t n = order.windows_per_epoch();
  std::set<int64_t> offsets;
  std::set<std::vector<int64_t>> orders;
  for (int64_t epoch = 0; epoch < 200; ++epoch) {
    std::vector<int64_t> windows;
    for (int64_t i = 0; i < n; ++i) windows.push_back(order.window_begin(epoch * n + i) / 16);
    offsets.insert(order.window_begin(epoch * n) % 16);
    orders.insert(windows);
  }
  EXPECT_EQ(offsets.size(), 16u);
  EXPECT_EQ(orders.size(), 200u);
}

TEST(WindowOrder, GoesStraightOnWithoutShuffle) {
  const WindowOrder order(10, 3, 1, false);
  EXPECT_EQ(order.windows_per_epoch(), 3);
  std::vector<int64_t> begins;
  for (int64_t sample = 0; sample < 5; ++sample) begins.push_back(order.window_begin(sample));
  EXPECT_THAT(begins, ElementsAre(0, 3, 6, 0, 3));
  EXPECT_EQ(WindowOrder(9, 3, 1, false).windows_per_epoch(), 2);
}

TEST(WindowOrder, UsesAStreamOfOneWindow) {
  for (const bool shuffle : {false, true}) {
    const WindowOrder order(5, 4, 1, shuffle);
    EXPECT_EQ(order.windows_per_epoch(), 1);
    EXPECT_EQ(order.window_begin(3), 0);
  }
  EXPECT_THAT(error_of([] { WindowOrder order(4, 4, 1, true); }),
              HasSubstr("got 4 tokens and seq_len 4"));
  EXPECT_THAT(error_of([] { WindowOrder order(4, 0, 1, true); }), HasSubstr("seq_len 0"));
}

}  // namespace
}  // namespace narrowgauge::data

#include "data/document_packing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "tests/data/temporary_directory.h"

namespace narrowgauge::data {
namespace {

using ::testing::HasSubstr;

class DocumentsOf : public TokenStorage {
 public:
  explicit DocumentsOf(const std::vector<int64_t>& sizes) {
    uint64_t end = 0;
    for (const int64_t size : sizes) documents_.push_back({end += size, 0});
  }
  int64_t num_tokens() const override { return static_cast<int64_t>(documents_.back().end); }
  void read(int64_t begin, std::span<int64_t> out) const override {
    std::iota(out.begin(), out.end(), begin);
  }
  std::span<const DocumentEnd> documents() const override { return documents_; }
  const std::string& name() const override { return name_; }

 private:
  std::vector<DocumentEnd> documents_;
  std::string name_ = "sizes";
};

TokenDataset dataset_of(const std::vector<int64_t>& sizes) {
  const auto storage = std::make_shared<DocumentsOf>(sizes);
  return TokenDataset({{storage, 0, storage->num_tokens()}});
}

// Of an epoch: how often each token is a target.
std::map<int64_t, int> count_targets(const DocumentPacking& packing, int64_t epoch,
                                     int64_t seq_len) {
  std::map<int64_t, int> counts;
  for (int64_t i = 0; i < packing.windows_per_epoch(); ++i) {
    int64_t filled = 0;
    for (const WindowPiece& piece : packing.window(epoch * packing.windows_per_epoch() + i)) {
      EXPECT_GT(piece.num_targets, 0);
      filled += piece.num_targets;
      for (int64_t t = 1; t <= piece.num_targets; ++t) ++counts[piece.begin + t];
    }
    EXPECT_LE(filled, seq_len);
  }
  return counts;
}

RC_GTEST_PROP(DocumentPacking, EveryTargetOnceAnEpochInFewWindows, (uint64_t seed)) {
  const auto sizes =
      *rc::gen::nonEmpty(rc::gen::container<std::vector<int64_t>>(rc::gen::inRange(1, 60)));
  const auto seq_len = *rc::gen::inRange<int64_t>(1, 40);
  const bool shuffle = *rc::gen::arbitrary<bool>();
  RC_PRE(*std::max_element(sizes.begin(), sizes.end()) > 1);
  const TokenDataset dataset = dataset_of(sizes);
  const DocumentPacking packing(dataset, seq_len, seed, shuffle);
  std::map<int64_t, int> expected;
  int64_t begin = 0;
  for (const int64_t size : sizes) {
    for (int64_t t = 1; t < size; ++t) expected[begin + t] = 1;
    begin += size;
  }
  for (const int64_t epoch : {0, 1, 1000}) {
    RC_ASSERT(count_targets(packing, epoch, seq_len) == expected);
  }
  const auto num_targets = static_cast<int64_t>(expected.size());
  RC_ASSERT(packing.num_targets() == num_targets);
  // Two windows that are half empty would have been one: best fit fills more than half of all but
  // one.
  RC_ASSERT((packing.windows_per_epoch() - 1) * seq_len <= 2 * num_targets);
  RC_ASSERT(packing.windows_per_epoch() * seq_len >= num_targets);
}

TEST(DocumentPacking, FitsLongOnesFirst) {
  // 9 + 1, 8 + 2, 5 + 5 targets fill three windows of 10.
  const TokenDataset dataset = dataset_of({2, 6, 3, 10, 6, 9, 1});
  const DocumentPacking packing(dataset, 10, 0, false);
  EXPECT_EQ(packing.windows_per_epoch(), 3);
  EXPECT_EQ(packing.num_targets(), 30);
}

TEST(DocumentPacking, ShufflesWindowsEachEpoch) {
  const TokenDataset dataset = dataset_of(std::vector<int64_t>(100, 11));
  const DocumentPacking packing(dataset, 10, 5, true);
  const auto begins = [&](int64_t epoch) {
    std::vector<int64_t> all;
    for (int64_t i = 0; i < 100; ++i) all.push_back(packing.window(epoch * 100 + i)[0].begin);
    return all;
  };
  EXPECT_NE(begins(0), begins(1));
  EXPECT_EQ(begins(0), begins(0));
}

TEST(DocumentPacking, RefusesDataWithoutATarget) {
  const TokenDataset ones = dataset_of({1, 1});
  EXPECT_THAT(error_of([&] { DocumentPacking packing(ones, 10, 0, true); }),
              HasSubstr("at least two tokens to pack, got none in 2"));
  const TokenDataset two = dataset_of({2});
  EXPECT_THAT(error_of([&] { DocumentPacking packing(two, 0, 0, true); }), HasSubstr("got none"));
}

}  // namespace
}  // namespace narrowgauge::data

#include "data/data_loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <set>

#include "tests/data/temporary_directory.h"

namespace narrowgauge::data {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Token i has id i; documents of 10 tokens.
class CountingStorage : public TokenStorage {
 public:
  explicit CountingStorage(int64_t num_tokens) : num_tokens_(num_tokens) {
    for (int64_t end = 10; end < num_tokens + 10; end += 10) {
      documents_.push_back({static_cast<uint64_t>(std::min(end, num_tokens)), 0});
    }
  }
  int64_t num_tokens() const override { return num_tokens_; }
  void read(int64_t begin, std::span<int64_t> out) const override {
    for (auto& id : out) id = begin++;
  }
  std::span<const DocumentEnd> documents() const override { return documents_; }
  const std::string& name() const override { return name_; }

 private:
  int64_t num_tokens_;
  std::vector<DocumentEnd> documents_;
  std::string name_ = "counting";
};

std::shared_ptr<const TokenDataset> counting(int64_t num_tokens) {
  return std::make_shared<TokenDataset>(
      std::vector<TokenRange>{{std::make_shared<CountingStorage>(num_tokens), 0, num_tokens}});
}

// The rows of ranks 0, 1, ... one below the other.
template <typename Loader>
Batch gather(const Loader& loader, int64_t step, int64_t global_batch_size, int64_t num_ranks) {
  Batch whole;
  const int64_t share = global_batch_size / num_ranks;
  for (int64_t rank = 0; rank < num_ranks; ++rank) {
    const Batch batch = loader.batch(step, rank * share, share);
    whole.inputs.insert(whole.inputs.end(), batch.inputs.begin(), batch.inputs.end());
    whole.targets.insert(whole.targets.end(), batch.targets.begin(), batch.targets.end());
    whole.num_valid_tokens += batch.num_valid_tokens;
  }
  return whole;
}

TEST(DataLoader, TargetsAreTheInputsOneOn) {
  const DataLoader loader(counting(1000), {.seq_len = 7, .global_batch_size = 4, .seed = 5});
  const Batch batch = loader.batch(3, 1, 2);
  EXPECT_EQ(batch.batch_size, 2);
  EXPECT_EQ(batch.seq_len, 7);
  EXPECT_EQ(batch.num_valid_tokens, 14);
  EXPECT_TRUE(batch.cu_seqlens.empty());
  ASSERT_EQ(batch.inputs.size(), 14u);
  for (size_t i = 0; i < 14; ++i) {
    EXPECT_EQ(batch.targets[i], batch.inputs[i] + 1);
    EXPECT_EQ(batch.inputs[i], batch.inputs[i / 7 * 7] + static_cast<int64_t>(i % 7));
  }
}

RC_GTEST_PROP(DataLoader, GivesTheSameGlobalBatchToAnyNumberOfRanks, (uint64_t seed)) {
  const auto num_tokens = *rc::gen::inRange<int64_t>(200, 3000);
  const auto step = *rc::gen::inRange<int64_t>(0, 1'000'000);
  const DataLoader loader(counting(num_tokens),
                          {.seq_len = 8, .global_batch_size = 12, .seed = seed});
  const Batch whole = gather(loader, step, 12, 1);
  for (const int64_t num_ranks : {2, 3, 4, 12}) {
    const Batch gathered = gather(loader, step, 12, num_ranks);
    RC_ASSERT(gathered.inputs == whole.inputs);
    RC_ASSERT(gathered.targets == whole.targets);
    RC_ASSERT(gathered.num_valid_tokens == whole.num_valid_tokens);
  }
  // A loader made anew at this step, as after a restart.
  const DataLoader resumed(counting(num_tokens),
                           {.seq_len = 8, .global_batch_size = 12, .seed = seed});
  RC_ASSERT(resumed.batch(step, 0, 12).inputs == whole.inputs);
}

TEST(DataLoader, SeesEachWindowOnceAnEpochAcrossBatches) {
  // 1000 / 8 - 1 = 124 windows do not divide into batches of 12, so batches straddle epochs.
  const DataLoader loader(counting(1000), {.seq_len = 8, .global_batch_size = 12, .seed = 5});
  ASSERT_EQ(loader.windows_per_epoch(), 124);
  EXPECT_EQ(loader.tokens_per_epoch(), 992);
  std::vector<int64_t> begins;
  for (int64_t step = 0; step < 31; ++step) {
    const Batch batch = loader.batch(step, 0, 12);
    for (int64_t row = 0; row < 12; ++row) begins.push_back(batch.inputs[row * 8]);
  }
  ASSERT_EQ(begins.size(), 3u * 124);
  for (int epoch = 0; epoch < 3; ++epoch) {
    std::vector<int64_t> seen(begins.begin() + epoch * 124, begins.begin() + (epoch + 1) * 124);
    std::sort(seen.begin(), seen.end());
    for (size_t i = 1; i < seen.size(); ++i) EXPECT_EQ(seen[i], seen[i - 1] + 8);
  }
}

TEST(DataLoader, DependsOnTheSeed) {
  const auto first = [](uint64_t seed) {
    return DataLoader(counting(1000), {.seq_len = 8, .global_batch_size = 12, .seed = seed})
        .batch(0, 0, 12)
        .inputs;
  };
  EXPECT_EQ(first(1), first(1));
  EXPECT_NE(first(1), first(2));
}

// What a batch of packed documents must be, whatever is in it: every row ends a document, within
// one each target is the next input, and no document of 10 tokens is seen beyond its end.
int64_t check_documents(const Batch& batch) {
  const auto& ends = batch.cu_seqlens;
  EXPECT_EQ(ends.front(), 0);
  EXPECT_EQ(ends.back(), batch.batch_size * batch.seq_len);
  int64_t num_valid = 0;
  for (size_t i = 0; i + 1 < ends.size(); ++i) {
    EXPECT_LT(ends[i], ends[i + 1]);
    EXPECT_EQ(ends[i] / batch.seq_len, (ends[i + 1] - 1) / batch.seq_len);
    const bool is_padding = batch.targets[ends[i]] == kIgnoredTarget;
    for (int32_t at = ends[i]; at < ends[i + 1]; ++at) {
      EXPECT_EQ(batch.inputs[at], is_padding ? 0 : batch.inputs[ends[i]] + at - ends[i]);
      EXPECT_EQ(batch.targets[at], is_padding ? kIgnoredTarget : batch.inputs[at] + 1);
      if (!is_padding) {
        EXPECT_EQ(batch.targets[at] / 10, batch.inputs[ends[i]] / 10);
      }
      num_valid += is_padding ? 0 : 1;
    }
  }
  EXPECT_EQ(batch.num_valid_tokens, num_valid);
  return num_valid;
}

TEST(DataLoader, PacksWholeDocuments) {
  for (const int64_t seq_len : {5, 9, 20, 32}) {
    const DataLoader loader(
        counting(1003),
        {.seq_len = seq_len, .global_batch_size = 3, .seed = 1, .packing = Packing::kDocuments});
    // A multiple of every number of windows of an epoch.
    const int64_t num_steps = loader.windows_per_epoch();
    int64_t num_valid = 0;
    for (int64_t step = 0; step < num_steps; ++step) {
      num_valid += check_documents(loader.batch(step, 0, 3));
    }
    EXPECT_EQ(num_valid, 3 * (100 * 9 + 2)) << seq_len;  // each target of three epochs
    // The documents of 9 targets fit in twos or threes, or are split in 5 and 4.
    const double filled = 902.0 / static_cast<double>(loader.tokens_per_epoch());
    EXPECT_GT(filled, seq_len == 32 ? 0.80 : 0.85);
  }
}

TEST(DataLoader, PackedRanksTogetherSeeTheGlobalBatch) {
  const DataLoader loader(
      counting(1003),
      {.seq_len = 20, .global_batch_size = 4, .seed = 1, .packing = Packing::kDocuments});
  const Batch whole = gather(loader, 7, 4, 1);
  for (const int64_t num_ranks : {2, 4}) {
    EXPECT_EQ(gather(loader, 7, 4, num_ranks).inputs, whole.inputs);
    EXPECT_EQ(gather(loader, 7, 4, num_ranks).targets, whole.targets);
  }
}

TEST(DataLoader, MixesInExactProportion) {
  // Tokens below 1000 are the first source's, then the second's.
  const auto second = std::make_shared<TokenDataset>(
      std::vector<TokenRange>{{std::make_shared<CountingStorage>(3000), 1000, 3000}});
  const auto first = counting(1000);
  const DataLoader loader({{first, 3.0}, {second, 1.0}},
                          {.seq_len = 4, .global_batch_size = 100, .seed = 5});
  int64_t num_first = 0;
  std::set<int64_t> begins;
  for (int64_t step = 0; step < Mixture::kBlock / 100; ++step) {
    const Batch batch = loader.batch(step, 0, 100);
    for (int64_t row = 0; row < 100; ++row) {
      const bool is_first = batch.inputs[row * 4] < 1000;
      num_first += is_first ? 1 : 0;
      if (!is_first) begins.insert(batch.inputs[row * 4]);
    }
  }
  EXPECT_EQ(num_first, Mixture::kBlock * 3 / 4);
  EXPECT_GT(begins.size(), 495u);  // 2500 samples are five epochs of 499 windows, at offsets
  EXPECT_EQ(loader.windows_per_epoch(), 249 + 499);
  const DataLoader resumed({{first, 3.0}, {second, 1.0}},
                           {.seq_len = 4, .global_batch_size = 100, .seed = 5});
  EXPECT_EQ(resumed.batch(123456, 20, 5).inputs, loader.batch(123456, 20, 5).inputs);
  EXPECT_THAT(error_of([&] {
                DataLoader({{first, 1.0}, {second, 0.0}}, {.seq_len = 4});
              }),
              HasSubstr("weights above 0"));
}

TEST(DataLoader, RefusesDataSmallerThanOneBatch) {
  const auto make = [](int64_t num_tokens) {
    return error_of([&] {
      DataLoader loader(counting(num_tokens), {.seq_len = 8, .global_batch_size = 12, .seed = 5});
    });
  };
  EXPECT_EQ(make(104), "");
  EXPECT_EQ(make(103),
            "expected data for at least one global batch of 12 windows, got 11 of 8 tokens; add "
            "data, or lower training.global_batch_size or training.seq_len");
  EXPECT_THAT(make(8), HasSubstr("got 8 tokens and seq_len 8"));
}

TEST(DataLoader, RefusesSamplesOutsideTheBatch) {
  const DataLoader loader(counting(1000), {.seq_len = 8, .global_batch_size = 4, .seed = 5});
  EXPECT_EQ(loader.batch(0, 4, 0).inputs.size(), 0u);
  EXPECT_THAT(error_of([&] { loader.batch(0, 3, 2); }), HasSubstr("batch of 4, got 2 from 3"));
  EXPECT_THAT(error_of([&] { loader.batch(0, -1, 2); }), HasSubstr("got 2 from -1"));
  EXPECT_THAT(error_of([&] { loader.batch(-1, 0, 1); }), HasSubstr("got -1"));
}

RC_GTEST_PROP(ValidationLoader, SeesEachTargetOnceWithAnyNumberOfRanks, ()) {
  const auto num_tokens = *rc::gen::inRange<int64_t>(2, 300);
  const auto seq_len = *rc::gen::inRange<int64_t>(1, 40);
  const auto num_ranks = *rc::gen::inRange<int64_t>(1, 5);
  const int64_t global_batch_size = num_ranks * *rc::gen::inRange<int64_t>(1, 4);
  const ValidationLoader loader(counting(num_tokens), seq_len, global_batch_size);
  std::vector<int64_t> targets;
  int64_t num_valid = 0;
  for (int64_t index = 0; index < loader.num_batches(); ++index) {
    const Batch batch = gather(loader, index, global_batch_size, num_ranks);
    num_valid += batch.num_valid_tokens;
    for (size_t i = 0; i < batch.targets.size(); ++i) {
      if (batch.targets[i] == kIgnoredTarget) {
        RC_ASSERT(batch.inputs[i] == 0);
      } else {
        RC_ASSERT(batch.targets[i] == batch.inputs[i] + 1);
        targets.push_back(batch.targets[i]);
      }
    }
  }
  RC_ASSERT(num_valid == num_tokens - 1);
  RC_ASSERT(static_cast<int64_t>(targets.size()) == num_tokens - 1);
  for (int64_t i = 0; i + 1 < num_tokens; ++i) RC_ASSERT(targets[i] == i + 1);
}

TEST(ValidationLoader, PadsTheLastWindowAndTheLastBatch) {
  const ValidationLoader loader(counting(12), 4, 2);  // 11 targets: 4, 4, 3 and a row of padding
  ASSERT_EQ(loader.num_batches(), 2);
  const Batch last = loader.batch(1, 0, 2);
  EXPECT_THAT(last.inputs, ElementsAre(8, 9, 10, 0, 0, 0, 0, 0));
  EXPECT_THAT(last.targets, ElementsAre(9, 10, 11, -100, -100, -100, -100, -100));
  EXPECT_EQ(last.num_valid_tokens, 3);
  const Batch padding = loader.batch(1, 1, 1);
  EXPECT_THAT(padding.targets, Each(kIgnoredTarget));
  EXPECT_EQ(padding.num_valid_tokens, 0);
  EXPECT_THAT(error_of([&] { loader.batch(2, 0, 1); }), HasSubstr("[0, 2), got 2"));
}

TEST(ValidationLoader, PacksWholeDocumentsAndPadsTheLastBatch) {
  const ValidationLoader loader(counting(1003), 20, 8, Packing::kDocuments);
  int64_t num_valid = 0;
  for (int64_t index = 0; index < loader.num_batches(); ++index) {
    num_valid += check_documents(loader.batch(index, 0, 4));
    const Batch rest = loader.batch(index, 4, 4);
    num_valid += rest.num_valid_tokens == 0 ? 0 : check_documents(rest);
  }
  EXPECT_EQ(num_valid, 100 * 9 + 2);
}

TEST(ValidationLoader, RefusesDataWithoutATarget) {
  EXPECT_THAT(error_of([] { ValidationLoader loader(counting(1), 4, 2); }),
              HasSubstr("at least 2 tokens of validation data, got 1"));
  EXPECT_THAT(error_of([] { ValidationLoader loader(counting(9), 0, 2); }), HasSubstr("got 0"));
}

}  // namespace
}  // namespace narrowgauge::data

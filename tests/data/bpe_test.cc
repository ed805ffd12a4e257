#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "data/bpe_byte_alphabet.h"
#include "data/bpe_model.h"
#include "data/bpe_trainer.h"
#include "tests/data/temporary_directory.h"

namespace narrowgauge::data {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string_view> views(const std::vector<std::string>& texts) {
  return {texts.begin(), texts.end()};
}

// Text over few letters, so that merges are dense.
std::string random_text(size_t size, uint64_t seed, std::string_view letters) {
  std::mt19937_64 random(seed);
  std::string text;
  for (size_t i = 0; i < size; ++i) {
    text += letters[random() % letters.size()];
  }
  return text;
}

BpeSpec spec_of(const std::string& tokenizer_json) {
  const json model = json::parse(tokenizer_json)["model"];
  BpeSpec spec;
  for (const auto& [token, id] : model["vocab"].items()) {
    spec.vocab.emplace_back(token, id.get<int32_t>());
  }
  for (const auto& merge : model["merges"]) {
    const auto text = merge.get<std::string>();
    spec.merges.emplace_back(text.substr(0, text.find(' ')), text.substr(text.find(' ') + 1));
  }
  return spec;
}

// The definition: merge the pair of lowest rank, leftmost first, until there is none.
std::vector<std::string> merge_by_definition(const BpeSpec& spec, const std::string& piece) {
  std::map<std::pair<std::string, std::string>, size_t> ranks;
  for (size_t rank = 0; rank < spec.merges.size(); ++rank) {
    ranks[spec.merges[rank]] = rank;
  }
  std::vector<std::string> symbols;
  for (const char byte : piece) {
    symbols.push_back(to_byte_alphabet(std::string(1, byte)));
  }
  while (true) {
    size_t best_rank = std::numeric_limits<size_t>::max();
    size_t best = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto found = ranks.find({symbols[i], symbols[i + 1]});
      if (found != ranks.end() && found->second < best_rank) {
        best_rank = found->second;
        best = i;
      }
    }
    if (best_rank == std::numeric_limits<size_t>::max()) {
      return symbols;
    }
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
}

TEST(BpeModel, ShortAndLongPiecesFollowTheDefinition) {
  const std::vector<std::string> corpus = {random_text(20000, 1, "ab"),
                                           random_text(5000, 2, "abc")};
  const BpeSpec spec = spec_of(train_bpe(views(corpus), {.vocab_size = 400, .special_tokens = {}}));
  ASSERT_EQ(spec.merges.size(), 144u);
  const BpeModel model(spec);
  BpeScratch scratch;
  for (size_t size = 1; size < 200; ++size) {
    for (uint64_t repeat = 0; repeat < 2; ++repeat) {  // the second comes from the cache
      const std::string piece = random_text(size, size, "abc");
      std::vector<int32_t> ids;
      model.encode(piece, scratch, ids);
      std::vector<std::string> tokens;
      for (const int32_t id : ids) {
        tokens.push_back(model.tokens()[static_cast<size_t>(id)]);
      }
      ASSERT_EQ(tokens, merge_by_definition(spec, piece)) << piece;
    }
  }
}

TEST(BpeModel, TheLaterOfEqualMergesCounts) {
  BpeSpec spec;
  spec.vocab = {{"a", 0}, {"b", 1}, {"c", 2}, {"ab", 3}, {"bc", 4}};
  spec.merges = {{"a", "b"}, {"b", "c"}, {"a", "b"}};
  const BpeModel model(spec);
  BpeScratch scratch;
  std::vector<int32_t> ids;
  model.encode("abc", scratch, ids);
  EXPECT_THAT(ids, ElementsAre(0, 4));
}

TEST(BpeTrainer, MostFrequentFirstAndTiesBySmallestIds) {
  // " ab" three times, " cd" and " ef" twice: equal counts go by the ids of the bytes.
  const std::vector<std::string> corpus = {" ab ef cd ab", " cd ab ef"};
  const json document =
      json::parse(train_bpe(views(corpus), {.vocab_size = 263, .special_tokens = {"<e>"}}));
  EXPECT_THAT(document["model"]["merges"].get<std::vector<std::string>>(),
              ElementsAre("a b", "\u0120 ab", "c d", "e f", "\u0120 cd", "\u0120 ef"));
  EXPECT_EQ(document["model"]["vocab"]["<e>"], 0);
  EXPECT_EQ(document["model"]["vocab"]["!"], 1);
  EXPECT_EQ(document["model"]["vocab"]["ab"], 257);
  EXPECT_EQ(document["added_tokens"][0]["content"], "<e>");
}

TEST(BpeTrainer, ThreadsAndCutsDoNotMatter) {
  // Large enough to be cut for the threads many times.
  const std::string large = random_text(3'000'000, 3, "aaabbc  \n.1");
  const std::vector<std::string> whole = {large};
  for (const char* pre_tokenizer : {"llama3", "gpt2"}) {
    BpeTrainerOptions options{.vocab_size = 300, .num_threads = 1, .pre_tokenizer = pre_tokenizer};
    const std::string one = train_bpe(views(whole), options);
    options.num_threads = 3;
    EXPECT_EQ(train_bpe(views(whole), options), one);
  }
}

TEST(BpeTrainer, ReportsProgressAndStopsWithoutPairs) {
  std::vector<std::string> stages;
  BpeTrainerOptions options{.vocab_size = 1000};
  options.progress = [&](double fraction, std::string_view stage) {
    EXPECT_GE(fraction, 0);
    EXPECT_LE(fraction, 1);
    if (stages.empty() || stages.back() != stage) {
      stages.emplace_back(stage);
    }
  };
  const std::vector<std::string> corpus = {"abc abc"};
  const json document = json::parse(train_bpe(views(corpus), options));
  EXPECT_THAT(stages, ElementsAre("counting words", "merging"));
  EXPECT_EQ(document["model"]["vocab"].size(), 260u);  // ab, abc, " abc"
}

TEST(BpeTrainer, RefusesWhatCannotBeTrained) {
  const auto error = [](const std::vector<std::string>& corpus, const BpeTrainerOptions& options) {
    return error_of([&] { train_bpe(views(corpus), options); });
  };
  EXPECT_THAT(error({"text"}, {.vocab_size = 256}), HasSubstr("from 257 (256 bytes and"));
  EXPECT_THAT(error({"text"}, {.vocab_size = int64_t{1} << 40}), HasSubstr("got 1099511627776"));
  EXPECT_THAT(error({"text"}, {.pre_tokenizer = "gpt4"}), HasSubstr("got 'gpt4'"));
  EXPECT_THAT(error({"text"}, {.special_tokens = {"a"}}), HasSubstr("one of them"));
  EXPECT_THAT(error({"text"}, {.special_tokens = {"<x>", "<x>"}}), HasSubstr("got '<x>'"));
  EXPECT_THAT(error({"", ""}, {}), HasSubstr("got 2 documents without any"));
  EXPECT_THAT(error({}, {}), HasSubstr("got 0 documents"));
  EXPECT_THAT(error({"good", "ba\xFF"}, {}), HasSubstr("offset 2 of document 1"));
}

TEST(BpeTrainer, ConfigNamesTheEndOfDocuments) {
  const json config = json::parse(tokenizer_config_json({.special_tokens = {"<end>", "<pad>"}}));
  EXPECT_EQ(config["eos_token"], "<end>");
  EXPECT_TRUE(json::parse(tokenizer_config_json({.special_tokens = {}}))["eos_token"].is_null());
}

TEST(ByteAlphabet, IsABijection) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) {
    all += static_cast<char>(byte);
  }
  EXPECT_EQ(from_byte_alphabet(to_byte_alphabet(all)), all);
  EXPECT_EQ(to_byte_alphabet(" \n\xAD"), "\u0120\u010a\u0143");
  EXPECT_EQ(from_byte_alphabet("a b"), std::nullopt);
  EXPECT_EQ(from_byte_alphabet("\u4e00"), std::nullopt);
}

}  // namespace
}  // namespace narrowgauge::data

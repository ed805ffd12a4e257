#include "data/token_dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>

#include "data/byte_tokenizer.h"
#include "data/token_file.h"
#include "tests/data/shifted_byte_tokenizer.h"
#include "tests/data/temporary_directory.h"

namespace narrowgauge::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;

// Documents given as they are; content is told apart by the ids.
class MemoryStorage : public TokenStorage {
 public:
  explicit MemoryStorage(const std::vector<std::vector<int64_t>>& documents) {
    for (const auto& document : documents) {
      uint64_t hash = document.size();
      for (const int64_t id : document) hash = hash * 1'000'003 + static_cast<uint64_t>(id);
      ids_.insert(ids_.end(), document.begin(), document.end());
      documents_.push_back({ids_.size(), hash});
    }
  }
  int64_t num_tokens() const override { return static_cast<int64_t>(ids_.size()); }
  void read(int64_t begin, std::span<int64_t> out) const override {
    std::copy_n(ids_.begin() + begin, out.size(), out.begin());
  }
  std::span<const DocumentEnd> documents() const override { return documents_; }
  const std::string& name() const override { return name_; }

 private:
  std::vector<int64_t> ids_;
  std::vector<DocumentEnd> documents_;
  std::string name_ = "memory";
};

std::shared_ptr<const TokenStorage> storage(const std::vector<std::vector<int64_t>>& documents) {
  return std::make_shared<MemoryStorage>(documents);
}

std::vector<int64_t> tokens_of(const TokenDataset& dataset) {
  std::vector<int64_t> ids(dataset.num_tokens());
  dataset.read(0, ids);
  return ids;
}

std::vector<int64_t> tokens_of(const std::vector<TokenRange>& ranges) {
  return tokens_of(TokenDataset(ranges));
}

TEST(TokenDataset, ReadsAcrossRanges) {
  const auto a = storage({{0, 1, 2}, {3, 4}, {5}});
  const auto b = storage({{6, 7}, {8}});
  const TokenDataset dataset({{a, 0, 3}, {a, 5, 6}, {b, 0, 3}});
  EXPECT_THAT(tokens_of(dataset), ElementsAre(0, 1, 2, 5, 6, 7, 8));
  EXPECT_EQ(dataset.num_documents(), 4);
  EXPECT_EQ(dataset.num_windows(2), 3);
  EXPECT_EQ(dataset.num_windows(3), 2);
  EXPECT_EQ(dataset.num_windows(7), 0);
  const auto all = tokens_of(dataset);
  for (int64_t begin = 0; begin <= 7; ++begin) {
    for (int64_t end = begin; end <= 7; ++end) {
      std::vector<int64_t> part(end - begin);
      dataset.read(begin, part);
      EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + begin));
    }
  }
  std::vector<int64_t> two(2);
  EXPECT_THAT(error_of([&] { dataset.read(6, two); }), HasSubstr("within 7, got [6, 8)"));
  EXPECT_THAT(error_of([&] { dataset.read(-1, two); }), HasSubstr("got [-1, 1)"));
}

TEST(TokenDataset, SaysWhereDocumentsEnd) {
  const auto a = storage({{0, 1, 2}, {3, 4}, {5}});
  const TokenDataset dataset({{a, 0, 5}, {a, 5, 6}, {storage({{6, 7}, {8}}), 0, 3}});
  EXPECT_THAT(dataset.document_ends(), ElementsAre(3, 5, 6, 8, 9));
  // Ranges that begin and end within documents.
  EXPECT_THAT(TokenDataset({{a, 1, 4}, {a, 4, 6}}).document_ends(), ElementsAre(2, 3, 4, 5));
  EXPECT_THAT(TokenDataset({}).document_ends(), ElementsAre());
}

TEST(TokenDataset, RefusesRangesOutsideTheirStream) {
  const auto a = storage({{0, 1, 2}});
  EXPECT_THAT(error_of([&] { TokenDataset dataset({{a, 1, 4}}); }), HasSubstr("[1, 4) of 3"));
  EXPECT_THAT(error_of([&] { TokenDataset dataset({{a, 2, 2}}); }), HasSubstr("[2, 2) of 3"));
  EXPECT_EQ(TokenDataset({}).num_tokens(), 0);
}

TEST(HoldOut, CutsTheTailOfFewDocumentsAsNanoGptDoes) {
  std::vector<int64_t> ids(1115);
  const auto split = hold_out({storage({ids})}, 0.1);
  EXPECT_EQ(TokenDataset(split.train).num_tokens(), 1003);  // int(1115 * 0.9)
  EXPECT_EQ(TokenDataset(split.validation).num_tokens(), 112);
  const auto two = hold_out({storage({{0, 1, 2, 3}}), storage({{4, 5, 6, 7, 8, 9}})}, 0.4);
  EXPECT_THAT(tokens_of(two.train), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(tokens_of(two.validation), ElementsAre(6, 7, 8, 9));
}

TEST(HoldOut, TakesNothingForZeroAndRefusesTheImpossible) {
  const auto split = hold_out({storage({{0, 1}, {2}})}, 0);
  EXPECT_THAT(tokens_of(split.train), ElementsAre(0, 1, 2));
  EXPECT_TRUE(split.validation.empty());
  for (const double fraction : {-0.1, 1.0, 5.0, std::nan("")}) {
    EXPECT_THAT(error_of([&] { hold_out({storage({{0}})}, fraction); }), HasSubstr("in [0, 1)"));
  }
}

std::vector<std::vector<int64_t>> made_documents(int count) {
  std::vector<std::vector<int64_t>> documents;
  for (int i = 0; i < count; ++i) documents.emplace_back(1 + i * 37 % 100, i);
  return documents;
}

TEST(HoldOut, TakesWholeDocumentsOfAboutTheFraction) {
  const auto documents = made_documents(1000);
  const auto all = storage(documents);
  for (const double fraction : {0.001, 0.05, 0.3, 0.9}) {
    const auto split = hold_out({all}, fraction);
    const TokenDataset train(split.train);
    const TokenDataset validation(split.validation);
    EXPECT_EQ(train.num_tokens() + validation.num_tokens(), all->num_tokens());
    EXPECT_EQ(train.num_documents() + validation.num_documents(), 1000);
    EXPECT_NEAR(validation.num_tokens(), fraction * all->num_tokens(), 50);
    std::map<int64_t, int64_t> counts;
    for (const int64_t id : tokens_of(validation)) ++counts[id];
    for (const auto& [id, count] : counts) {
      EXPECT_EQ(count, static_cast<int64_t>(documents[id].size()));
    }
  }
}

TEST(HoldOut, DoesNotDependOnHowDocumentsAreSpread) {
  auto documents = made_documents(200);
  const auto whole = tokens_of(hold_out({storage(documents)}, 0.1).validation);
  const std::vector<std::vector<int64_t>> first(documents.begin(), documents.begin() + 77);
  const std::vector<std::vector<int64_t>> second(documents.begin() + 77, documents.end());
  EXPECT_EQ(tokens_of(hold_out({storage(first), storage(second)}, 0.1).validation), whole);
  std::reverse(documents.begin(), documents.end());
  auto reversed = tokens_of(hold_out({storage(documents)}, 0.1).validation);
  std::reverse(reversed.begin(), reversed.end());
  EXPECT_EQ(reversed, whole);
}

TEST(HoldOut, KeepsEqualDocumentsOnOneSide) {
  auto documents = made_documents(100);
  for (int i = 0; i < 100; ++i) documents.push_back(documents[i % 50]);
  const auto split = hold_out({storage(documents)}, 0.2);
  const auto train = tokens_of(split.train);
  for (const int64_t id : tokens_of(split.validation)) {
    EXPECT_EQ(std::count(train.begin(), train.end(), id), 0);
  }
}

TEST(HoldOut, CutsTheTailWhenAllDocumentsAreEqual) {
  const auto split = hold_out({storage(std::vector<std::vector<int64_t>>(100, {1, 2}))}, 0.1);
  EXPECT_EQ(TokenDataset(split.train).num_tokens(), 180);
  EXPECT_EQ(TokenDataset(split.validation).num_tokens(), 20);
}

class OpenDataset : public ::testing::Test {
 protected:
  OpenDataset() { options_.cache_dir = directory_.file("cache"); }

  std::string write_llmc(const std::string& name, int32_t magic, int32_t version, int32_t count,
                         const std::string& ids) {
    std::vector<int32_t> header(256);
    header[0] = magic;
    header[1] = version;
    header[2] = count;
    return directory_.write(name, bytes_of(header) + ids);
  }

  TemporaryDirectory directory_;
  DatasetOptions options_;
};

TEST_F(OpenDataset, KeepsSourcesApart) {
  std::string lines;
  for (int i = 0; i < 40; ++i) lines += "{\"text\": \"" + std::to_string(1000 + i) + "\"}\n";
  options_.train = {directory_.write("b.jsonl", lines), directory_.write("a.txt", "zzzzzz")};
  options_.validation_fraction = 0.2;
  options_.separates_sources = true;
  const ShiftedByteTokenizer tokenizer;
  const Split split = open_dataset(options_, &tokenizer);
  ASSERT_EQ(split.sources.size(), 2u);  // in the order of the list, not of the paths
  const auto first = tokens_of(*split.sources[0]);
  auto all = first;
  const auto second = tokens_of(*split.sources[1]);
  EXPECT_THAT(second, ElementsAre('z' + 1, 'z' + 1, 'z' + 1, 'z' + 1, 'z' + 1, 'z' + 1, 0));
  all.insert(all.end(), second.begin(), second.end());
  EXPECT_EQ(tokens_of(*split.train), all);
  EXPECT_EQ(first.size() + split.validation->num_tokens(), 40u * 5);
  EXPECT_NEAR(static_cast<double>(split.validation->num_tokens()), 0.2 * 207, 5);
  options_.separates_sources = false;
  EXPECT_TRUE(open_dataset(options_, &tokenizer).sources.empty());
}

TEST_F(OpenDataset, GivesExactlyTheBytesOfAFile) {
  std::string text;
  for (int i = 0; text.size() < 10'001; ++i) text += std::to_string(i) + "\n";
  options_.train = {directory_.write("a.txt", text)};
  options_.validation_fraction = 0.1;
  options_.vocab_size = 256;
  const ByteTokenizer tokenizer;
  const Split split = open_dataset(options_, &tokenizer);
  auto ids = tokens_of(*split.train);
  EXPECT_EQ(ids.size(), static_cast<size_t>(text.size() * 0.9));
  const auto tail = tokens_of(*split.validation);
  ids.insert(ids.end(), tail.begin(), tail.end());
  EXPECT_TRUE(std::string(ids.begin(), ids.end()) == text);
}

TEST_F(OpenDataset, ReadsFilesOfTokenIds) {
  const auto nano = directory_.write("a.bin", bytes_of(std::vector<uint16_t>{1, 2, 65535}));
  const auto narrow =
      write_llmc("b.bin", 20240520, 1, 2, bytes_of(std::vector<uint16_t>{3, 50256}));
  const auto wide = write_llmc("c.bin", 20240801, 7, 2, bytes_of(std::vector<uint32_t>{4, 128000}));
  options_.train = {directory_.file("*.bin")};
  options_.validation_fraction = 0;
  const Split split = open_dataset(options_, nullptr);
  EXPECT_THAT(tokens_of(*split.train), ElementsAre(1, 2, 65535, 3, 50256, 4, 128000));
  EXPECT_EQ(split.train->num_documents(), 3);
  EXPECT_EQ(split.validation, nullptr);

  options_.train = {wide};
  options_.validation = {nano};
  EXPECT_THAT(tokens_of(*open_dataset(options_, nullptr).validation), ElementsAre(1, 2, 65535));

  options_.train = {directory_.file("?.bin")};
  options_.vocab_size = 65536;
  EXPECT_THAT(error_of([&] { open_dataset(options_, nullptr); }),
              HasSubstr("c.bin': expected ids below vocab_size 65536, got 128000 at token 1"));
}

TEST_F(OpenDataset, RefusesDamagedFilesOfTokenIds) {
  const std::string ids = bytes_of(std::vector<uint16_t>{1, 2, 3});
  const auto error = [](const std::string& path) {
    return error_of([&] { open_token_file(path, 0); });
  };
  EXPECT_THAT(error(directory_.write("a.bin", "odd")), HasSubstr("got 3 bytes, an odd number"));
  EXPECT_THAT(error(directory_.write("a.bin", "")), HasSubstr("the file is empty"));
  EXPECT_THAT(error(write_llmc("a.bin", 20240520, 1, 0, "")), HasSubstr("the file is empty"));
  EXPECT_THAT(error(write_llmc("a.bin", 20240520, 2, 3, ids)), HasSubstr("version 1 after"));
  EXPECT_THAT(error(write_llmc("a.bin", 20240520, 1, -1, ids)), HasSubstr("says -1 tokens"));
  EXPECT_THAT(error(write_llmc("a.bin", 20240520, 1, 2147483647, ids)),
              HasSubstr("says 2147483647 tokens, that is 4294968318 bytes, but the file has 1030"));
  EXPECT_THAT(error(write_llmc("a.bin", 20240801, 7, 3, ids)), HasSubstr("that is 1036 bytes"));
  const std::string good = read_file(write_llmc("a.bin", 20240520, 1, 3, ids));
  EXPECT_EQ(error(directory_.file("a.bin")), "");
  for (size_t size = 4; size < good.size(); size += 3) {
    EXPECT_NE(error(directory_.write("a.bin", good.substr(0, size))), "") << size;
  }
}

TEST_F(OpenDataset, ChecksIdsBehindTheOnesCheckedAtOpen) {
  std::vector<uint16_t> ids((1 << 24) + 3, 7);
  ids.back() = 9;
  const auto file = open_token_file(directory_.write("a.bin", bytes_of(ids)), 9);
  std::vector<int64_t> out(2);
  file->read(1 << 24, out);
  EXPECT_THAT(error_of([&] { file->read((1 << 24) + 1, out); }),
              HasSubstr("got 9 at token 16777218"));
}

TEST_F(OpenDataset, TakesAPreparedCacheAsSource) {
  const ShiftedByteTokenizer tokenizer;
  const auto text = directory_.write("a.txt", "ab");
  const auto cache = prepare_tokens(
      {describe_file(text)}, tokenizer,
      {.text = {}, .cache_dir = options_.cache_dir, .num_threads = 1, .progress = nullptr});
  options_.train = {cache->name()};
  options_.validation_fraction = 0;
  EXPECT_THAT(tokens_of(*open_dataset(options_, nullptr).train), ElementsAre('b', 'c', 0));
  options_.vocab_size = 256;
  EXPECT_THAT(error_of([&] { open_dataset(options_, nullptr); }),
              HasSubstr("a vocabulary of 257, but the model's vocab_size is 256"));
}

TEST_F(OpenDataset, MakesRandomTokensFromTheSeed) {
  options_.train = {"random_tokens"};
  options_.vocab_size = 1000;
  options_.seed = 3;
  const auto first = [&] {
    std::vector<int64_t> ids(20'000);
    open_dataset(options_, nullptr).train->read(5, ids);
    return ids;
  };
  const auto ids = first();
  EXPECT_EQ(first(), ids);
  EXPECT_EQ(*std::min_element(ids.begin(), ids.end()), 0);
  EXPECT_EQ(*std::max_element(ids.begin(), ids.end()), 999);
  double mean = 0;  // expectation 499.5, deviation 288.7 / sqrt(20000) = 2.04
  for (const int64_t id : ids) mean += static_cast<double>(id) / 20'000;
  EXPECT_NEAR(mean, 499.5, 5 * 2.04);
  std::vector<int64_t> later(10);
  open_dataset(options_, nullptr).train->read(15, later);
  EXPECT_TRUE(std::equal(later.begin(), later.end(), ids.begin() + 10));

  EXPECT_EQ(open_dataset(options_, nullptr).validation, nullptr);
  options_.validation = {"random_tokens"};
  const Split split = open_dataset(options_, nullptr);
  EXPECT_EQ(split.validation->num_tokens(), 1 << 20);
  std::vector<int64_t> other(20'000);
  split.validation->read(5, other);
  EXPECT_NE(other, ids);
  options_.seed = 4;
  EXPECT_NE(first(), ids);
}

TEST_F(OpenDataset, SaysWhatIsWrongWithTheOptions) {
  const ShiftedByteTokenizer tokenizer;
  const auto text = directory_.write("a.txt", "ab");
  const auto error = [&](const Tokenizer* given) {
    return error_of([&] { open_dataset(options_, given); });
  };
  EXPECT_THAT(error(&tokenizer), HasSubstr("data.train, got none"));
  options_.train = {directory_.file("none*.txt")};
  EXPECT_THAT(error(&tokenizer), HasSubstr("none*.txt"));
  options_.train = {text};
  EXPECT_THAT(error(nullptr), HasSubstr("got '" + text + "'; set tokenizer.kind"));
  options_.vocab_size = 256;
  EXPECT_THAT(error(&tokenizer), HasSubstr("the tokenizer's 257, got 256"));
  options_.vocab_size = 257;
  options_.invalid_utf8 = "ignore";
  EXPECT_THAT(error(&tokenizer), HasSubstr("got 'ignore'"));
  options_.train = {"random_tokens", text};
  EXPECT_THAT(error(&tokenizer), HasSubstr("the only source, got it among 2"));
  options_.train = {"random_tokens"};
  options_.vocab_size = 0;
  EXPECT_THAT(error(nullptr), HasSubstr("set model.vocab_size"));
}

}  // namespace
}  // namespace narrowgauge::data

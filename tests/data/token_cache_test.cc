#include "data/token_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "tests/data/temporary_directory.h"

namespace narrowgauge::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr CacheFingerprint kFingerprint = {1, 2};

// Two documents, of 5 and 2 tokens.
std::string write_small(const TemporaryDirectory& directory, int64_t vocab_size) {
  const std::string path = directory.file("small.tokens");
  TokenCacheWriter writer(path, kFingerprint, vocab_size);
  writer.append(std::vector<int32_t>{0, 1, static_cast<int32_t>(vocab_size) - 1}, 10);
  writer.append(std::vector<int32_t>{3, 4}, 5);
  writer.end_document();
  writer.end_document();  // without tokens: no document
  writer.append(std::vector<int32_t>{3, 4}, 7);
  writer.end_document();
  writer.finish();
  return path;
}

std::vector<int64_t> read_all(const TokenStorage& storage) {
  std::vector<int64_t> ids(storage.num_tokens());
  storage.read(0, ids);
  return ids;
}

TEST(TokenCache, GivesBackWhatWasWritten) {
  for (const int64_t vocab_size : {257, 65536, 65537, 2'000'000'000}) {
    const TemporaryDirectory directory;
    const TokenCache cache(write_small(directory, vocab_size));
    EXPECT_EQ(cache.token_bytes(), vocab_size <= 65536 ? 2 : 4);
    EXPECT_EQ(cache.vocab_size(), vocab_size);
    EXPECT_EQ(cache.text_bytes(), 22u);
    EXPECT_EQ(cache.fingerprint(), kFingerprint);
    EXPECT_THAT(read_all(cache), ElementsAre(0, 1, vocab_size - 1, 3, 4, 3, 4));
    ASSERT_EQ(cache.documents().size(), 2u);
    EXPECT_EQ(cache.documents()[0].end, 5u);
    EXPECT_EQ(cache.documents()[1].end, 7u);
    EXPECT_NE(cache.documents()[0].content_hash, cache.documents()[1].content_hash);
    cache.verify_tokens();
    std::vector<int64_t> part(2);
    cache.read(2, part);
    EXPECT_THAT(part, ElementsAre(vocab_size - 1, 3));
  }
}

TEST(TokenCache, KeepsWhichTokensAreNoTargets) {
  for (const int64_t vocab_size : {300, 2'000'000'000}) {
    const TemporaryDirectory directory;
    const auto last = static_cast<int32_t>(vocab_size - 1);
    TokenCacheWriter writer(directory.file("a"), kFingerprint, vocab_size, /*has_ignored=*/true);
    writer.append(std::vector<int32_t>{5, last, 0, 0}, 0, std::vector<uint8_t>{1, 1, 0, 1});
    writer.append(std::vector<int32_t>{7}, 0);
    writer.end_document();
    EXPECT_THAT(error_of([&] {
                  writer.append(std::vector<int32_t>{1, 2}, 0, std::vector<uint8_t>{1});
                }),
                HasSubstr("one for each id"));
    writer.finish();
    const TokenCache cache(directory.file("a"));
    EXPECT_THAT(read_all(cache), ElementsAre(5, last, 0, 0, 7));
    std::vector<uint8_t> ignored(4);
    cache.read_ignored(1, ignored);
    EXPECT_THAT(ignored, ElementsAre(1, 0, 1, 0));
    cache.verify_tokens();
    // The bytes say which version they are: a cache of version 1 stays what it was.
    const std::string content = read_file(directory.file("a"));
    EXPECT_EQ(content[8], 2);
    for (size_t size = 0; size < content.size(); ++size) {
      EXPECT_NE(error_of([&] { TokenCache cut(directory.write("cut", content.substr(0, size))); }),
                "");
    }
  }
  const TemporaryDirectory directory;
  const TokenCache plain(write_small(directory, 300));
  EXPECT_EQ(read_file(plain.name())[8], 1);
  std::vector<uint8_t> ignored(7, 9);
  plain.read_ignored(0, ignored);
  EXPECT_THAT(ignored, ElementsAre(0, 0, 0, 0, 0, 0, 0));
  TokenCacheWriter writer(directory.file("b"), kFingerprint, 10);
  EXPECT_NE(error_of([&] { writer.append(std::vector<int32_t>{1}, 0, std::vector<uint8_t>{1}); }),
            "");
}

TEST(TokenCache, HashesEqualDocumentsEqually) {
  const TemporaryDirectory directory;
  TokenCacheWriter writer(directory.file("a"), kFingerprint, 100);
  for (const int32_t last : {7, 8, 7}) {
    writer.append(std::vector<int32_t>{1, 2}, 0);
    writer.append(std::vector<int32_t>{last}, 0);
    writer.end_document();
  }
  writer.finish();
  const TokenCache cache(directory.file("a"));
  EXPECT_EQ(cache.documents()[0].content_hash, cache.documents()[2].content_hash);
  EXPECT_NE(cache.documents()[0].content_hash, cache.documents()[1].content_hash);
}

TEST(TokenCache, RefusesEveryTruncation) {
  const TemporaryDirectory directory;
  const std::string content = read_file(write_small(directory, 257));
  ASSERT_EQ(content.size(), 80u + 16 + 2 * 16);
  for (size_t size = 0; size < content.size(); ++size) {
    const auto path = directory.write("cut", content.substr(0, size));
    EXPECT_THAT(error_of([&] { TokenCache cache(path); }),
                HasSubstr("'" + path + "' is no usable token cache"))
        << size;
  }
  EXPECT_NE(error_of([&] { TokenCache cache(directory.write("long", content + "x")); }), "");
}

TEST(TokenCache, RefusesEveryFlippedBitOfHeaderAndTable) {
  const TemporaryDirectory directory;
  const std::string content = read_file(write_small(directory, 257));
  const size_t table = 80 + 16;
  for (size_t at = 0; at < content.size(); ++at) {
    if (at >= 80 && at < table) continue;  // tokens and padding
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = content;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << bit));
      EXPECT_NE(error_of([&] { TokenCache cache(directory.write("flipped", damaged)); }), "")
          << "byte " << at << ", bit " << bit;
    }
  }
}

TEST(TokenCache, FindsEveryFlippedBitOfTheTokens) {
  const TemporaryDirectory directory;
  const std::string content = read_file(write_small(directory, 257));
  for (size_t at = 80; at < 80 + 7 * 2; ++at) {
    std::string damaged = content;
    damaged[at] = static_cast<char>(damaged[at] ^ 1);
    const TokenCache cache(directory.write("flipped", damaged));
    EXPECT_THAT(error_of([&] { cache.verify_tokens(); }), HasSubstr("checksum of the tokens"));
  }
}

TEST(TokenCache, RefusesCountsThatOverflow) {
  const TemporaryDirectory directory;
  const std::string content = read_file(write_small(directory, 257));
  for (const size_t field : {16, 24}) {  // tokens, documents
    for (const uint64_t lie : {~uint64_t{0}, uint64_t{1} << 63, uint64_t{1} << 60, uint64_t{100}}) {
      std::string damaged = content;
      damaged.replace(field, 8, bytes_of(std::vector<uint64_t>{lie}));
      EXPECT_THAT(error_of([&] { TokenCache cache(directory.write("lie", damaged)); }),
                  HasSubstr("does not fit 128 bytes"));
    }
  }
}

TEST(TokenCacheWriter, LeavesNothingUnlessItFinishes) {
  const TemporaryDirectory directory;
  {
    TokenCacheWriter writer(directory.file("a"), kFingerprint, 10);
    writer.append(std::vector<int32_t>(100'000, 1), 0);
    EXPECT_FALSE(std::filesystem::exists(directory.file("a")));
  }
  EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
  write_small(directory, 10);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory.path()), {}), 1);
}

TEST(TokenCacheWriter, RefusesIdsOutsideTheVocabulary) {
  const TemporaryDirectory directory;
  TokenCacheWriter writer(directory.file("a"), kFingerprint, 10);
  writer.append(std::vector<int32_t>{9, 0}, 0);
  EXPECT_THAT(error_of([&] {
                writer.append(std::vector<int32_t>{1, 10}, 0);
              }),
              HasSubstr("below the tokenizer's vocabulary of 10, got 10 as token 3"));
  EXPECT_THAT(error_of([&] { writer.append(std::vector<int32_t>{-1}, 0); }), HasSubstr("got -1"));
}

TEST(TokenCacheWriter, SaysWhyItCannotWrite) {
  EXPECT_THAT(error_of([] { TokenCacheWriter writer("/proc/none/a", kFingerprint, 10); }),
              HasSubstr("set data.cache_dir"));
  // Every write to /dev/full fails as on a full disk.
  const TemporaryDirectory directory;
  std::filesystem::create_symlink("/dev/full", directory.file("full.tmp"));
  TokenCacheWriter writer(directory.file("full"), kFingerprint, 10);
  EXPECT_THAT(error_of([&] {
                for (int i = 0; i < 10; ++i) writer.append(std::vector<int32_t>(10'000, 1), 0);
                writer.end_document();
                writer.finish();
              }),
              HasSubstr("No space left on device"));
}

}  // namespace
}  // namespace narrowgauge::data

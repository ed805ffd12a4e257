#include "data/megatron_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "tests/data/temporary_directory.h"

namespace narrowgauge::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

template <typename T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

struct IndexFields {
  uint64_t version = 1;
  uint8_t type = 8;
  std::vector<int32_t> lengths = {3, 2, 0, 4};
  std::vector<int64_t> pointers = {0, 6, 10, 10};
  std::vector<int64_t> documents = {0, 2, 2, 4};  // of 5 and 4 ids, an empty one between
};

std::string index_of(const IndexFields& fields) {
  std::string out("MMIDIDX\0\0", 9);
  put(out, fields.version);
  put(out, fields.type);
  put(out, static_cast<uint64_t>(fields.lengths.size()));
  put(out, static_cast<uint64_t>(fields.documents.size()));
  return out + bytes_of(fields.lengths) + bytes_of(fields.pointers) + bytes_of(fields.documents);
}

class MegatronFileTest : public ::testing::Test {
 protected:
  std::unique_ptr<TokenStorage> open(const std::string& index, int64_t vocab_size = 0,
                                     const std::string& ids = bytes_of(kIds)) {
    directory_.write("a.idx", index);
    return open_megatron_file(directory_.write("a.bin", ids), vocab_size, DocumentHash::kContent);
  }
  std::string error(const IndexFields& fields) {
    return error_of([&] { open(index_of(fields)); });
  }

  static inline const std::vector<uint16_t> kIds = {7, 8, 9, 65535, 1, 7, 8, 9, 65535};
  TemporaryDirectory directory_;
};

std::vector<int64_t> read_all(const TokenStorage& storage) {
  std::vector<int64_t> ids(storage.num_tokens());
  storage.read(0, ids);
  return ids;
}

TEST_F(MegatronFileTest, ReadsBothTypes) {
  const auto narrow = open(index_of({}));
  const std::vector<int64_t> ids = read_all(*narrow);
  EXPECT_THAT(ids, ElementsAre(7, 8, 9, 65535, 1, 7, 8, 9, 65535));
  ASSERT_EQ(narrow->documents().size(), 2u);
  EXPECT_EQ(narrow->documents()[0].end, 5u);
  EXPECT_EQ(narrow->documents()[1].end, 9u);
  const auto wide = open(index_of({.type = 4, .pointers = {0, 12, 20, 20}}), 0,
                         bytes_of(std::vector<int32_t>(kIds.begin(), kIds.end())));
  EXPECT_EQ(read_all(*wide), ids);
  std::vector<int64_t> part(2);
  wide->read(3, part);
  EXPECT_THAT(part, ElementsAre(65535, 1));
}

TEST_F(MegatronFileTest, HashesContentOnDemand) {
  const IndexFields halves = {
      .lengths = {4, 1, 4}, .pointers = {0, 8, 10}, .documents = {0, 1, 2, 3}};
  const auto by_content = open(index_of(halves));
  EXPECT_EQ(by_content->documents()[0].content_hash, by_content->documents()[2].content_hash);
  EXPECT_NE(by_content->documents()[0].content_hash, by_content->documents()[1].content_hash);
  const auto by_position = open_megatron_file(directory_.file("a.bin"), 0, DocumentHash::kPosition);
  EXPECT_NE(by_position->documents()[0].content_hash, by_position->documents()[2].content_hash);
}

TEST_F(MegatronFileTest, RefusesIndicesThatLie) {
  EXPECT_EQ(error({}), "");
  EXPECT_THAT(error({.version = 2}), HasSubstr("expected version 1, got 2"));
  for (const uint8_t type : {0, 1, 2, 3, 5, 6, 7, 9, 255}) {
    EXPECT_THAT(error({.type = type}), HasSubstr("or 4 (int32), got type"));
  }
  EXPECT_THAT(error({.type = 4}), HasSubstr("at byte 12"));
  EXPECT_THAT(error({.lengths = {3, 2, 0, 5}}), HasSubstr("10 ids, that is 20 bytes, but its .bin "
                                                          "has 18"));
  EXPECT_THAT(error({.lengths = {3, -2, 0, 4}}), HasSubstr("length -2"));
  EXPECT_THAT(error({.pointers = {0, 8, 10, 10}}), HasSubstr("sequence 1 at byte 6"));
  EXPECT_THAT(error({.pointers = {-2, 6, 10, 10}}), HasSubstr("got byte -2"));
  for (const std::vector<int64_t>& documents : std::vector<std::vector<int64_t>>{
           {1, 4}, {0, 3, 2, 4}, {0, 5}, {0, 3}, {0, -1, 4}, {}, {0}, {int64_t{1} << 62}}) {
    EXPECT_THAT(error({.documents = documents}), HasSubstr("document ind"));
  }
  EXPECT_THAT(error({.lengths = {}, .pointers = {}, .documents = {0}}), HasSubstr("0 ids"));
  EXPECT_THAT(
      error_of([&] { open(index_of({.lengths = {}, .pointers = {}, .documents = {0}}), 0, ""); }),
      HasSubstr("got none"));
}

TEST_F(MegatronFileTest, RefusesEveryTruncationAndSurvivesEveryFlippedBit) {
  const std::string good = index_of({});
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_NE(error_of([&] { open(good.substr(0, size)); }), "") << size;
  }
  EXPECT_NE(error_of([&] { open(good + std::string(4, '\0')); }), "");  // modes
  for (size_t at = 0; at < good.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = good;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << bit));
      try {
        EXPECT_EQ(read_all(*open(damaged)).size(), 9u);  // another border of documents, at most
      } catch (const std::runtime_error&) {
      }
    }
  }
  std::mt19937_64 random(1);
  for (int i = 0; i < 2000; ++i) {
    std::string noise = good.substr(0, 18);
    while (noise.size() < 200) noise += static_cast<char>(random() >> (random() % 2 * 60));
    EXPECT_NE(error_of([&] { open(noise); }), "");
  }
}

TEST_F(MegatronFileTest, NamesForeignIds) {
  const auto file = open(index_of({}), 100);
  std::vector<int64_t> ids(9);
  EXPECT_THAT(error_of([&] { file->read(0, ids); }),
              HasSubstr("below vocab_size 100, got 65535 at token 3"));
}

}  // namespace
}  // namespace narrowgauge::data

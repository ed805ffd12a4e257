#include "data/parquet_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "data/decompress.h"
#include "data/run_length.h"
#include "tests/data/temporary_directory.h"

namespace narrowgauge::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Written by pyarrow, see make_files.py there.
const std::string kFolder = "tests/data/parquet/";
const std::vector<std::string> kFiles = {"snappy_v1", "zstd_v2", "plain_v1", "required_v2"};

struct Row {
  int64_t row = 0;
  std::string text;
  bool operator==(const Row&) const = default;
};

std::vector<Row> read_all(const std::string& path, const std::string& column) {
  ParquetText in(path, column);
  std::vector<Row> rows;
  for (std::string_view text; in.next(text);) rows.push_back({in.row(), std::string(text)});
  return rows;
}

TEST(ParquetText, GivesWhatPyarrowWrote) {
  const auto texts = nlohmann::json::parse(read_file(kFolder + "texts.json"));
  for (const std::string& file : kFiles) {
    for (const char* column : {"text", "repeated"}) {
      std::vector<Row> expected;
      int64_t row = 0;
      for (const auto& value : texts.at(column)) {
        ++row;
        const bool is_null = value.is_null();
        if (!is_null || file == "required_v2") {
          expected.push_back({row, is_null ? "" : value.get<std::string>()});
        }
      }
      EXPECT_EQ(read_all(kFolder + file + ".parquet", column), expected) << file << " " << column;
    }
  }
}

TEST(ParquetText, NamesWhatItCannotRead) {
  const std::string file = kFolder + "snappy_v1.parquet";
  EXPECT_THAT(error_of([&] { read_all(file, "body"); }),
              HasSubstr("expected the column 'body', got 'id, text, messages, repeated'"));
  EXPECT_THAT(error_of([&] { read_all(file, "id"); }), HasSubstr("got another type"));
  EXPECT_THAT(error_of([&] { read_all(file, "messages"); }), HasSubstr("nested columns as .jsonl"));
  EXPECT_THAT(error_of([&] { read_all(file, "role"); }), HasSubstr("expected the column"));
  EXPECT_THAT(error_of([&] { read_all(kFolder + "gzip.parquet", "text"); }),
              HasSubstr("got codec 2"));
  const TemporaryDirectory directory;
  EXPECT_THAT(error_of([&] { read_all(directory.write("a.parquet", "{}"), "text"); }),
              HasSubstr("expected PAR1 at both ends"));
  std::string encrypted = read_file(file);
  encrypted.replace(0, 4, "PARE").replace(encrypted.size() - 4, 4, "PARE");
  EXPECT_THAT(error_of([&] { read_all(directory.write("b.parquet", encrypted), "text"); }),
              HasSubstr("encrypted"));
}

// Whatever a file says, it is read or refused; with AddressSanitizer this says more.
TEST(ParquetText, SurvivesDamage) {
  const TemporaryDirectory directory;
  std::mt19937_64 random(1);
  for (const std::string& name : kFiles) {
    const std::string good = read_file(kFolder + name + ".parquet");
    const auto read = [&](const std::string& content) {
      const auto path = directory.write("damaged.parquet", content);
      return error_of([&] {
        read_all(path, "text");
        read_all(path, "repeated");
      });
    };
    EXPECT_EQ(read(good), "");
    for (size_t size = 0; size < good.size(); size += 7) {
      EXPECT_NE(read(good.substr(0, size)), "") << size;
      if (size + 4 >= good.size()) continue;
      // The footer in its place, and less before it.
      EXPECT_NE(read("PAR1" + good.substr(good.size() - size)), "") << size;
    }
    for (int i = 0; i < 1500; ++i) {
      std::string damaged = good;
      for (uint64_t times = 1 + random() % 3; times > 0; --times) {
        damaged[random() % damaged.size()] = static_cast<char>(random());
      }
      read(damaged);
    }
  }
}

std::span<const std::byte> as_bytes(const std::string& text) {
  return std::as_bytes(std::span(text));
}

TEST(Decompress, ReadsEveryElementOfSnappy) {
  // Literals of 1, 61 and 257 bytes, copies with offsets of 11, 16 and 32 bits, one over itself.
  std::string compressed = {'\xC8', '\x02'};  // of 328 bytes
  compressed += std::string(
      "\x00"
      "a",
      2);
  compressed += std::string("\xF0\x3C", 2) + std::string(61, 'b');
  compressed += std::string("\xF4\x00\x01", 3) + std::string(257, 'c');
  compressed += std::string("\x01\x01", 2);              // 4 bytes from 1 back
  compressed += std::string("\x06\x43\x01", 3);          // 2 bytes from 323 back
  compressed += std::string("\x0B\x45\x01\x00\x00", 5);  // 3 bytes from 325 back
  const std::string expected =
      "a" + std::string(61, 'b') + std::string(257, 'c') + "cccc" + "ab" + "abb";
  ASSERT_EQ(expected.size(), 328u);
  EXPECT_EQ(decompress_snappy(as_bytes(compressed), 328), expected);
  for (size_t size = 0; size < compressed.size(); ++size) {
    const std::string cut = compressed.substr(0, size);
    EXPECT_NE(error_of([&] { decompress_snappy(as_bytes(cut), 328); }), "") << size;
  }
  EXPECT_NE(error_of([&] { decompress_snappy(as_bytes(compressed), 327); }), "");
  for (const char* wrong : {"\x01\x01\x01", "\x04\x01\x00", "\xFF\xFF\xFF\xFF\xFF\xFF\x01"}) {
    EXPECT_NE(error_of([&] { decompress_snappy(as_bytes(wrong), 4); }), "");
  }
}

TEST(RunLengths, ReadRunsAndPackedBits) {
  // 3 of 5, then 8 numbers of 3 bits: the example of parquet's Encodings.md.
  const std::string bytes = "\x06\x05\x03\x88\xC6\xFA";
  EXPECT_THAT(decode_run_lengths(bytes, 3, 11), ElementsAre(5, 5, 5, 0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_THAT(decode_run_lengths(bytes, 3, 2), ElementsAre(5, 5));
  EXPECT_NE(error_of([&] { decode_run_lengths(bytes, 3, 12); }), "");
  EXPECT_NE(error_of([&] { decode_run_lengths(bytes, 33, 1); }), "");
  EXPECT_NE(error_of([&] { decode_run_lengths("", 1, 1); }), "");
  EXPECT_THAT(decode_run_lengths(std::string("\x04", 1), 0, 2), ElementsAre(0, 0));
  EXPECT_THAT(decode_run_lengths("\x02\xFF\xFF\xFF\xFF", 32, 1), ElementsAre(4294967295u));
}

}  // namespace
}  // namespace narrowgauge::data

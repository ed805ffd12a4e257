#include "data/text_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>

#include "data/utf8.h"
#include "tests/data/temporary_directory.h"

namespace narrowgauge::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

std::vector<SourceFile> describe(const std::vector<std::string>& paths) {
  std::vector<SourceFile> files;
  for (const auto& path : paths) files.push_back(describe_file(path));
  return files;
}

std::vector<std::string> texts_of(TextSource& source) {
  std::vector<std::string> texts;
  while (auto record = source.next()) texts.push_back(source.decode(std::move(*record)));
  return texts;
}

std::vector<std::string> texts_of(const std::vector<std::string>& paths, TextOptions options = {}) {
  TextSource source(describe(paths), std::move(options));
  return texts_of(source);
}

TEST(TextSource, GivesEachFileAsADocumentAndCountsEmptyOnes) {
  const TemporaryDirectory directory;
  TextSource source(describe({directory.write("a.txt", "one\ntwo"), directory.write("b.txt", ""),
                              directory.write("c.py", std::string("\0x\r\n", 4))}),
                    {});
  EXPECT_THAT(texts_of(source), ElementsAre("one\ntwo", std::string("\0x\r\n", 4)));
  EXPECT_EQ(source.num_empty_files(), 1);
  EXPECT_EQ(source.bytes_read(), 11u);
  EXPECT_EQ(source.total_bytes(), 11u);
}

TEST(TextSource, GivesEachLineOfJsonl) {
  const TemporaryDirectory directory;
  const auto path = directory.write("a.jsonl",
                                    "{\"text\": \"a\\n\\u00e9\", \"id\": 1}\r\n"
                                    "\n   \n"
                                    "{\"id\": {\"text\": 3}, \"text\": \"\"}\n"
                                    "{\"text\": \"last, without newline\"}");
  EXPECT_THAT(texts_of({path}), ElementsAre("a\n\xC3\xA9", "", "last, without newline"));
  EXPECT_THAT(texts_of({directory.write("blank.jsonl", "\n\n")}), IsEmpty());
}

TEST(TextSource, ReadsLinesLongerThanItsBuffer) {
  const TemporaryDirectory directory;
  std::vector<std::string> expected;
  std::string content;
  for (const size_t size : {size_t{3'500'000}, size_t{1}, size_t{1} << 20, size_t{2'000'000}}) {
    expected.emplace_back(size, static_cast<char>('a' + expected.size()));
    content += "{\"text\":\"" + expected.back() + "\"}\n";
  }
  EXPECT_EQ(texts_of({directory.write("a.jsonl", content)}), expected);
}

TEST(TextSource, SaysWhereALineIsNoObjectWithTheField) {
  const TemporaryDirectory directory;
  const auto error = [&](const std::string& line) {
    const auto path = directory.write("a.jsonl", "{\"text\": \"good\"}\n\n" + line + "\n");
    const std::string message = error_of([&] { texts_of({path}); });
    EXPECT_THAT(message, StartsWith(path + ":3:"));
    return message.substr(std::min(message.size(), path.size()));
  };
  EXPECT_THAT(error("{\"text\": oops}"), StartsWith(":3:10: expected one JSON object a line"));
  EXPECT_THAT(error("{\"text\": \"a\"} x"), StartsWith(":3:15: "));
  EXPECT_THAT(error("{\"text\": \"cut"), StartsWith(":3:14: "));
  EXPECT_THAT(error("[1]"), StartsWith(":3:1: expected a JSON object, got array"));
  EXPECT_THAT(error("{\"body\": \"a\", \"id\": 1}"),
              StartsWith(":3:1: expected the field 'text', got an object with 'body, id'; set"));
  EXPECT_THAT(error("{}"), HasSubstr("with no field"));
  EXPECT_THAT(error("{\"text\": 3}"), StartsWith(":3:1: expected a string in the field 'text', "
                                                 "got number"));
  EXPECT_THAT(error_of([&] {
                texts_of({directory.write("b.jsonl", "{\"body\": 1}")}, {.text_field = "body"});
              }),
              HasSubstr(":1:1: expected a string in the field 'body', got number"));
}

TEST(TextSource, SaysWhereTextIsNotUtf8OrReplacesIt) {
  const TemporaryDirectory directory;
  const auto text = directory.write("a.txt", "caf\xC3\xA9 \xE9t\xE9");
  EXPECT_THAT(error_of([&] { texts_of({text}); }),
              StartsWith(text + ": expected UTF-8, got byte 0xe9 at byte offset 6; convert"));
  EXPECT_THAT(texts_of({text}, {.replace_invalid_utf8 = true}),
              ElementsAre("caf\xC3\xA9 \xEF\xBF\xBDt\xEF\xBF\xBD"));

  const auto lines = directory.write("a.jsonl", "{\"text\":\"a\"}\n{\"text\":\"\xFF\"}\n");
  EXPECT_THAT(error_of([&] { texts_of({lines}); }),
              StartsWith(lines + ": expected UTF-8, got byte 0xff at byte offset 22 (line 2);"));
  EXPECT_THAT(texts_of({lines}, {.replace_invalid_utf8 = true}), ElementsAre("a", "\xEF\xBF\xBD"));
}

TEST(TextSource, NoticesAFileThatChangesUnderIt) {
  const TemporaryDirectory directory;
  const auto path = directory.write("a.txt", "twelve bytes");
  for (const std::string_view now : {"short", "now more than twelve bytes", ""}) {
    const auto files = describe({directory.write("a.txt", "twelve bytes")});
    directory.write("a.txt", now);
    TextSource source(files, {});
    EXPECT_THAT(error_of([&] { source.next(); }),
                HasSubstr("expected 12 bytes, got " + std::to_string(now.size())));
  }
  TextSource source(describe({path}), {});
  std::filesystem::remove(path);
}

TEST(TextSource, CutsPiecesBetweenCharacters) {
  const TemporaryDirectory directory;
  std::string text;
  for (int i = 0; i < 500; ++i)
    text += i % 3 == 0 ? "\xF0\x9F\x9A\x82" : i % 3 == 1 ? "a" : "\xC3\xA9";
  for (const size_t piece_bytes : {4, 5, 6, 7, 1000, 100'000}) {
    TextSource source(describe({directory.write("a.txt", text), directory.write("b.txt", "b")}),
                      {.piece_bytes = piece_bytes});
    std::string joined;
    int num_documents = 0;
    while (auto record = source.next()) {
      EXPECT_EQ(record->offset, num_documents == 0 ? joined.size() : 0);
      EXPECT_LE(record->bytes.size(), piece_bytes);
      num_documents += record->ends_document;
      joined += source.decode(std::move(*record));  // throws if a character is cut
    }
    EXPECT_EQ(joined, text + "b");
    EXPECT_EQ(num_documents, 2);
  }
}

TEST(ReadDocuments, ReadsAllUpToTheLimit) {
  const TemporaryDirectory directory;
  const std::string long_text(5'000'000, 'x');  // several pieces
  const std::vector<std::string> patterns = {
      directory.write("a.jsonl", "{\"text\":\"one\"}\n{\"text\":\"t\u00e9o\"}\n"),
      directory.write("b.txt", long_text), directory.write("c.txt", "end")};
  std::vector<double> shown;
  EXPECT_EQ(read_documents(patterns, {}, UINT64_MAX, [&](double part) { shown.push_back(part); }),
            (std::vector<std::string>{"one", "t\u00e9o", long_text, "end"}));
  EXPECT_EQ(shown.back(), 1.0);
  EXPECT_TRUE(std::is_sorted(shown.begin(), shown.end()));
  // 3 + 4 bytes, then the limit; within "\u00e9" the character is left out.
  EXPECT_EQ(read_documents(patterns, {}, 1'500'007),
            (std::vector<std::string>{"one", "t\u00e9o", long_text.substr(0, 1'500'000)}));
  EXPECT_EQ(read_documents(patterns, {}, 5), (std::vector<std::string>{"one", "t"}));
  EXPECT_EQ(read_documents(patterns, {}, 3), (std::vector<std::string>{"one"}));
}

TEST(ReadDocuments, RefusesTokenIds) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("a.bin", "\1");
  EXPECT_THAT(error_of([&] { read_documents({path}, {}, 100); }),
              HasSubstr("expected text, got '" + path + "', which holds token ids"));
}

TEST(Utf8, FindsTheFirstIllFormedByte) {
  EXPECT_EQ(find_invalid_utf8(""), std::string::npos);
  EXPECT_EQ(find_invalid_utf8("ascii and \xC3\xA9 \xE2\x82\xAC \xF0\x9F\x9A\x82 \xEF\xBF\xBF"),
            std::string::npos);
  EXPECT_EQ(find_invalid_utf8("0123456789\x80"), 10u);     // continuation alone
  EXPECT_EQ(find_invalid_utf8("ab\xC0\xAF"), 2u);          // overlong
  EXPECT_EQ(find_invalid_utf8("ab\xE0\x9F\xBF"), 2u);      // overlong
  EXPECT_EQ(find_invalid_utf8("ab\xED\xA0\x80"), 2u);      // surrogate
  EXPECT_EQ(find_invalid_utf8("ab\xF4\x90\x80\x80"), 2u);  // above U+10FFFF
  EXPECT_EQ(find_invalid_utf8("ab\xF0\x9F\x9A"), 2u);      // cut short
}

TEST(Utf8, ReplacesMaximalIllFormedParts) {
  const std::string mark = "\xEF\xBF\xBD";
  // Unicode 15, table 3-8 and what Python gives for bytes.decode(errors="replace").
  EXPECT_EQ(replace_invalid_utf8("a\xF1\x80\x80\xE1\x80\xC2"
                                 "b\x80"
                                 "c\x80\xBF"
                                 "d"),
            "a" + mark + mark + mark + "b" + mark + "c" + mark + mark + "d");
  EXPECT_EQ(replace_invalid_utf8("\xED\xA0\x80"), mark + mark + mark);
  EXPECT_EQ(replace_invalid_utf8("\xF0\x9F\x9A"), mark);
  EXPECT_EQ(replace_invalid_utf8("fine \xC3\xA9"), "fine \xC3\xA9");
}

TEST(TextSource, TakesAColumnOfAParquetFile) {
  const TemporaryDirectory directory;
  const std::string parquet = "tests/data/parquet/snappy_v1.parquet";
  const auto last = describe_file(directory.write("z.txt", "last"));
  TextSource source({describe_file(parquet), last, describe_file(parquet)}, {.text_field = "text"});
  std::vector<std::string> texts;
  while (auto record = source.next()) {
    EXPECT_TRUE(record->ends_document);
    EXPECT_LE(source.bytes_read(), source.total_bytes());
    texts.push_back(source.decode(*std::move(record)));
  }
  EXPECT_EQ(source.bytes_read(), source.total_bytes());
  ASSERT_EQ(texts.size(), 53u * 2 + 1);  // 7 of 60 are null
  EXPECT_EQ(texts[53], "last");
  EXPECT_EQ(std::vector(texts.begin(), texts.begin() + 53),
            std::vector(texts.begin() + 54, texts.end()));
  TextSource rows({describe_file(parquet)}, {});
  EXPECT_THAT(error_of([&] { rows.decode_object(*rows.next()); }),
              HasSubstr("snappy_v1.parquet: expected a .jsonl file of messages"));
}

}  // namespace
}  // namespace narrowgauge::data

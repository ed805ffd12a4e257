#include "trainer/data_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <regex>
#include <span>

#include "tests/data/temporary_directory.h"

namespace narrowgauge::trainer {
namespace {

using ::testing::HasSubstr;
using ::testing::internal::CaptureStderr;
using ::testing::internal::CaptureStdout;
using ::testing::internal::GetCapturedStderr;
using ::testing::internal::GetCapturedStdout;

struct Outcome {
  int code;
  std::string output;
  std::string errors;
};

// As the front binary calls the command, but for the exit code of UsageError.
Outcome run(const std::vector<std::string>& arguments) {
  const std::span<const std::string> rest = std::span(arguments).subspan(1);
  int code = kExitFailure;
  std::string error;
  CaptureStdout();
  CaptureStderr();
  try {
    code = arguments[0] == "prepare" ? prepare_data(parse_data_prepare(rest))
                                     : inspect_data(parse_data_inspect(rest));
  } catch (const std::exception& what) {
    error = what.what();
  }
  std::fflush(stdout);
  return {code, GetCapturedStdout(), GetCapturedStderr() + error};
}

TEST(DataCommand, PreparesOnceAndInspects) {
  const data::TemporaryDirectory directory;
  directory.write("text/a.txt", "first\n");
  directory.write("text/b.jsonl", "{\"body\":\"caf\\u00e9\"}\n{\"body\":\"x\"}\n");
  const std::vector<std::string> prepare = {
      "prepare",   "--cache-dir", directory.file("cache"), "--field", "body",
      "--threads", "1",           "--validation-fraction", "0.5",     directory.file("text")};
  const Outcome made = run(prepare);
  ASSERT_EQ(made.code, 0) << made.errors;
  EXPECT_THAT(made.output, HasSubstr("tokens      12 of 2 bytes, ids below 256\n"));
  EXPECT_THAT(made.output, HasSubstr("documents   3\n"));
  EXPECT_THAT(made.output, HasSubstr("text        12 bytes, 1.000 a token\n"));
  EXPECT_THAT(made.output, HasSubstr("validation  7 tokens (58.33 %) of 2 documents\n"));
  EXPECT_THAT(made.errors, HasSubstr("tokenizing: 100 %\n"));
  const Outcome again = run(prepare);
  EXPECT_EQ(again.code, 0);
  EXPECT_THAT(again.output, HasSubstr("the cache was there already"));
  EXPECT_EQ(again.errors, "");

  std::smatch match;
  ASSERT_TRUE(std::regex_search(made.output, match, std::regex("cache +(/.*)")));
  const std::string cache = match[1];
  const Outcome inspected = run(
      {"inspect", cache, "--tokenizer", "bytes", "--window", "10", "--windows", "9", "--verify"});
  ASSERT_EQ(inspected.code, 0) << inspected.errors;
  EXPECT_THAT(inspected.output, HasSubstr("checksum    right\n"));
  EXPECT_THAT(inspected.output,
              HasSubstr("tokens [0, 10)\n  [102,105,114,115,116,10,99,97,102,195]\n"
                        "  \"first\\ncaf\xEF\xBF\xBD\"\n"
                        "tokens [10, 12)\n  [169,120]\n  \"\xEF\xBF\xBDx\"\n"));

  std::string damaged = data::read_file(cache);
  damaged[80] = 'F';
  directory.write("damaged.tokens", damaged);
  EXPECT_EQ(run({"inspect", directory.file("damaged.tokens")}).code, 0);
  const Outcome refused = run({"inspect", directory.file("damaged.tokens"), "--verify"});
  EXPECT_EQ(refused.code, 1);
  EXPECT_THAT(refused.errors, HasSubstr("checksum of the tokens"));
}

TEST(DataCommand, InspectsFilesOfTokenIds) {
  const data::TemporaryDirectory directory;
  const auto path = directory.write("a.bin", data::bytes_of(std::vector<uint16_t>{1, 2, 3}));
  const Outcome outcome = run({"inspect", path, "--window", "2", "--windows", "1"});
  EXPECT_EQ(outcome.code, 0) << outcome.errors;
  EXPECT_EQ(outcome.output,
            "file        " + path + "\ntokens      3\ndocuments   1\ntokens [0, 2)\n  [1,2]\n");
}

TEST(DataCommand, SaysHowDocumentsFillWindows) {
  const data::TemporaryDirectory directory;
  const auto path = directory.write("a.jsonl", "{\"text\": \"123456\"}\n{\"text\": \"1234\"}\n");
  const Outcome outcome =
      run({"prepare", path, "--seq-len", "10", "--cache-dir", directory.file("cache")});
  EXPECT_EQ(outcome.code, 0) << outcome.errors;
  EXPECT_THAT(outcome.output, HasSubstr("packing     1 windows of 10, 80.00 % filled\n"));
}

TEST(DataCommand, FailsWithTheFileInTheMessage) {
  const data::TemporaryDirectory directory;
  const auto bad = directory.write("a.txt", "\xFF");
  const Outcome outcome = run({"prepare", bad, "--cache-dir", directory.file("cache")});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.errors, HasSubstr(bad + ": expected UTF-8"));
  EXPECT_EQ(
      run({"prepare", bad, "--cache-dir", directory.file("cache"), "--invalid-utf8", "replace"})
          .code,
      0);
  const auto ids = directory.write("a.bin", "\1\0");
  EXPECT_THAT(run({"prepare", ids}).errors, HasSubstr("which holds token ids"));
  EXPECT_EQ(run({"inspect", directory.file("none")}).code, 1);
}

TEST(DataCommand, PreparesWhereTrainLooks) {
  const data::TemporaryDirectory directory;
  setenv("NARROWGAUGE_CACHE", directory.file("shared").c_str(), 1);
  const Outcome outcome = run({"prepare", directory.write("a.txt", "text")});
  unsetenv("NARROWGAUGE_CACHE");
  ASSERT_EQ(outcome.code, 0) << outcome.errors;
  EXPECT_THAT(outcome.output, HasSubstr("cache       " + directory.file("shared/tokens/")));
}

TEST(DataCommand, WindowsEndWithTheTokens) {
  const data::TemporaryDirectory directory;
  const auto path = directory.write("a.bin", data::bytes_of(std::vector<uint16_t>{1, 2, 3}));
  const Outcome outcome =
      run({"inspect", path, "--window", "9223372036854775807", "--windows", "9223372036854775807"});
  EXPECT_EQ(outcome.code, 0) << outcome.errors;
  EXPECT_THAT(outcome.output, HasSubstr("tokens [0, 3)\n  [1,2,3]\n"));
}

}  // namespace
}  // namespace narrowgauge::trainer

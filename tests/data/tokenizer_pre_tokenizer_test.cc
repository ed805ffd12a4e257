#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data/pre_tokenizer.h"
#include "data/unicode_regex.h"
#include "tests/data/temporary_directory.h"

namespace narrowgauge::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> pieces(const PreTokenizer& tokenizer, std::string_view text) {
  RegexScratch scratch;
  std::vector<std::string> result;
  tokenizer.for_each_piece(text, scratch,
                           [&](std::string_view piece) { result.emplace_back(piece); });
  return result;
}

std::vector<std::string> split(std::string_view pattern, SplitBehavior behavior, bool invert,
                               std::string_view text) {
  PreTokenizer tokenizer;
  tokenizer.add_split(UnicodeRegex(pattern), behavior, invert);
  return pieces(tokenizer, text);
}

std::vector<std::string> isolate(std::string_view pattern, std::string_view text) {
  return split(pattern, SplitBehavior::kIsolated, false, text);
}

// The expectations of this file are what Hugging Face tokenizers 0.23 printed.
TEST(PreTokenizer, BehaviorsOnRunsOfMatches) {
  const auto run = [](SplitBehavior behavior, bool invert) {
    return split("-", behavior, invert, "the-final--countdown");
  };
  EXPECT_THAT(run(SplitBehavior::kRemoved, false), ElementsAre("the", "final", "countdown"));
  EXPECT_THAT(run(SplitBehavior::kIsolated, false),
              ElementsAre("the", "-", "final", "-", "-", "countdown"));
  EXPECT_THAT(run(SplitBehavior::kContiguous, false),
              ElementsAre("the", "-", "final", "--", "countdown"));
  EXPECT_THAT(run(SplitBehavior::kMergedWithPrevious, false),
              ElementsAre("the-", "final-", "-", "countdown"));
  EXPECT_THAT(run(SplitBehavior::kMergedWithNext, false),
              ElementsAre("the", "-final", "-", "-countdown"));
  EXPECT_THAT(run(SplitBehavior::kRemoved, true), ElementsAre("-", "-", "-"));
}

TEST(PreTokenizer, EmptyMatchesAreNoPieces) {
  EXPECT_THAT(isolate("x*", "axxb\u00e9c"), ElementsAre("a", "xx", "b", "\u00e9", "c"));
}

TEST(PreTokenizer, StagesSplitWhatTheOneBeforeLeft) {
  PreTokenizer tokenizer;
  tokenizer.add_split(UnicodeRegex(R"(\p{N})"), SplitBehavior::kIsolated, false);
  tokenizer.add_split(UnicodeRegex(R"( ?[a-z]+)"), SplitBehavior::kIsolated, false);
  tokenizer.add_prefix_space();
  EXPECT_THAT(pieces(tokenizer, "ab 1x y"), ElementsAre(" ab", " ", " 1", " x", " y"));
  EXPECT_THAT(pieces(tokenizer, ""), ElementsAre());
}

TEST(PreTokenizer, LongRunsOfSpacesAndLettersAreFine) {
  const std::string spaces(3'000'000, ' ');
  EXPECT_EQ(isolate(kLlama3Pattern, spaces + "x").size(), 2u);
  EXPECT_EQ(isolate(kGpt2Pattern, std::string(3'000'000, 'x')).size(), 1u);
}

TEST(UnicodeRegex, WhiteSpaceIsUnicodes) {
  EXPECT_THAT(isolate(R"(\s)", "a\u180eb\u0085c\u200bd\u2028e"),
              ElementsAre("a\u180eb", "\u0085", "c\u200bd", "\u2028", "e"));
  EXPECT_THAT(isolate(R"([^\S\n]+)", "a \u00a0\nb"), ElementsAre("a", " \u00a0", "\nb"));
}

TEST(UnicodeRegex, WordsAreOnigurumas) {
  EXPECT_THAT(isolate(R"(\w+)", "a\u00b2b\u2462c\u216bd\u24b6e\u203ff_g\u200dh\u0301i"),
              ElementsAre("a\u00b2b", "\u2462", "c\u216bd\u24b6e\u203ff_g", "\u200d", "h\u0301i"));
}

TEST(UnicodeRegex, CaseFoldsLikeUnicodeAndLinesLikeRuby) {
  EXPECT_THAT(isolate("(?i:'s|k)", "x'\u017fx\u212a"), ElementsAre("x", "'\u017f", "x", "\u212a"));
  EXPECT_THAT(isolate("^a|b$", "aab\nab"), ElementsAre("a", "a", "b", "\n", "a", "b"));
}

TEST(UnicodeRegex, LiteralsAreLiteral) {
  RegexScratch scratch;
  RegexMatch match{};
  const auto pattern = UnicodeRegex::for_literal(R"(a.[b]\d&&)");
  EXPECT_FALSE(pattern.find("axb5", 0, scratch, match));
  ASSERT_TRUE(pattern.find(R"(--a.[b]\d&&)", 0, scratch, match));
  EXPECT_EQ(match.begin, 2u);
}

TEST(UnicodeRegex, RefusesWhatWouldMeanSomethingElse) {
  const auto error = [](std::string_view pattern) {
    return error_of([&] { UnicodeRegex regex(pattern); });
  };
  EXPECT_THAT(error(R"(\p{N}{1,3}+)"), HasSubstr("'+' after an interval at offset 9"));
  EXPECT_THAT(error(R"([a-z&&[^b]])"), HasSubstr("an intersection of classes at offset 4"));
  EXPECT_THAT(error(R"([a[bc]])"), HasSubstr("a class inside a class"));
  EXPECT_THAT(error(R"(\bword)"), HasSubstr("\\b at offset 0"));
  EXPECT_THAT(error(R"(\h)"), HasSubstr("\\h"));
  EXPECT_THAT(error("(?m:.)"), HasSubstr("the flag m"));
  EXPECT_THAT(error("(*UTF)a"), HasSubstr("'(*'"));
  EXPECT_THAT(error("a\\"), HasSubstr("a backslash at the end"));
  EXPECT_THAT(error("a("), HasSubstr("missing closing parenthesis"));
  EXPECT_THAT(error("[]a]"), HasSubstr("an empty class"));
}

TEST(UnicodeRegex, RunawayPatternsFailInsteadOfCrashing) {
  RegexScratch scratch;
  RegexMatch match{};
  const UnicodeRegex pattern(R"((?:(a)|b|.\p{L}?)*c)");
  EXPECT_THROW(pattern.find(std::string(4'000'000, 'a'), 0, scratch, match), std::runtime_error);
}

}  // namespace
}  // namespace narrowgauge::data

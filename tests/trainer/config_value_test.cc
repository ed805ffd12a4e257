#include "trainer/config_value.h"

#include <gtest/gtest.h>

#include <bit>
#include <limits>
#include <random>

namespace narrowgauge::trainer {
namespace {

TEST(ParseInteger, TakesDecimalDigitsOnly) {
  EXPECT_EQ(parse_integer("0").value, 0);
  EXPECT_EQ(parse_integer("-17").value, -17);
  EXPECT_EQ(parse_integer("9223372036854775807").value, std::numeric_limits<int64_t>::max());
  for (const char* text : {"", " 1", "1 ", "+1", "0x10", "0o10", "1.", "--1", "-", "1 000", "١"}) {
    EXPECT_FALSE(parse_integer(text).value) << text;
  }
}

TEST(ParseInteger, SaysWhatToWriteInstead) {
  EXPECT_EQ(parse_integer("010").remedy, "; write it without leading zeros");
  EXPECT_EQ(parse_integer("-010").remedy, "; write it without leading zeros");
  EXPECT_EQ(parse_integer("1e3").remedy, "; write 1000");
  EXPECT_EQ(parse_integer("8.0").remedy, "; write 8");
  EXPECT_EQ(parse_integer("1_000").remedy, "; write 1000");
  EXPECT_EQ(parse_integer("1,000").remedy, "; write 1000");
  EXPECT_EQ(parse_integer("+5").remedy, "; write 5");
  EXPECT_EQ(parse_integer("1.5").remedy, "");
  EXPECT_EQ(parse_integer("9223372036854775808").remedy, "");
  EXPECT_FALSE(parse_integer("9223372036854775808").value);
}

TEST(ParseNumber, TakesFiniteDecimals) {
  EXPECT_EQ(parse_number("1").value, 1.0);
  EXPECT_EQ(parse_number("-.5").value, -0.5);
  EXPECT_EQ(parse_number("5.").value, 5.0);
  EXPECT_EQ(parse_number("3.0e-4").value, 3e-4);
  EXPECT_EQ(parse_number("1E+2").value, 100.0);
  for (const char* text : {"", ".", "-", "e5", "1e", "1e+", "nan", "inf", "-inf", ".inf", "0x1p3",
                           "1e999", "01.5", "1_0.5", "1,5", "1.5f", "1 "}) {
    EXPECT_FALSE(parse_number(text).value) << text;
  }
}

TEST(ParseBoolean, TakesTwoSpellings) {
  EXPECT_EQ(parse_boolean("true").value, true);
  EXPECT_EQ(parse_boolean("false").value, false);
  for (const char* text : {"yes", "on", "True", "TRUE", "1", "y"}) {
    EXPECT_FALSE(parse_boolean(text).value) << text;
    EXPECT_EQ(parse_boolean(text).remedy, "; write true") << text;
  }
  EXPECT_EQ(parse_boolean("Off").remedy, "; write false");
  EXPECT_EQ(parse_boolean("maybe").remedy, "");
}

TEST(FormatNumber, ReadsBackBitForBit) {
  EXPECT_EQ(format_number(3e-4), "3.0e-04");
  EXPECT_EQ(format_number(0.25), "0.25");
  EXPECT_EQ(format_number(1.0), "1.0");
  EXPECT_EQ(format_number(1e-8), "1.0e-08");
  std::mt19937_64 random(1);
  int finite = 0;
  for (int i = 0; i < 100000; ++i) {
    const double value = std::bit_cast<double>(random());
    if (std::isfinite(value)) {
      ++finite;
      const auto parsed = parse_number(format_number(value)).value;
      ASSERT_TRUE(parsed) << format_number(value);
      ASSERT_EQ(std::bit_cast<uint64_t>(*parsed), std::bit_cast<uint64_t>(value));
    }
  }
  EXPECT_GT(finite, 90000);
}

TEST(FormatText, QuotesWhatYamlCouldMisread) {
  EXPECT_EQ(format_text("runs/llama_12m"), "runs/llama_12m");
  for (const char* text : {"", "true", "No", "null", "y", "1e3", "-x", ".5", "a b", "a: b", "#a",
                           "*.txt", "[a]", "~"}) {
    EXPECT_EQ(format_text(text), "\"" + std::string(text) + "\"");
  }
  EXPECT_EQ(format_text("a\"b\\c\n\t"), "\"a\\\"b\\\\c\\n\\t\"");
}

TEST(InQuotes, CutsBetweenCharacters) {
  EXPECT_EQ(in_quotes("a\nb"), "\"a\\nb\"");
  const std::string euros = [] {
    std::string text = "x";  // so that byte 60 falls inside a character
    for (int i = 0; i < 40; ++i) {
      text += "€";
    }
    return text;
  }();
  const std::string quoted = in_quotes(euros);
  EXPECT_TRUE(quoted.ends_with("€...\"")) << quoted;
  EXPECT_FALSE(find_invalid_byte(quoted));
}

TEST(FindInvalidByte, NamesTheOffset) {
  EXPECT_FALSE(find_invalid_byte("a\tb\r\n\xEF\xBB\xBF é € 😀"));
  EXPECT_EQ(find_invalid_byte("ab\x04"), 2u);
  EXPECT_EQ(find_invalid_byte(std::string("a\0b", 3)), 1u);
  EXPECT_EQ(find_invalid_byte("\x7F"), 0u);
  EXPECT_EQ(find_invalid_byte("a\xC0\xAF"), 1u);         // overlong
  EXPECT_EQ(find_invalid_byte("\xED\xA0\x80"), 0u);      // surrogate
  EXPECT_EQ(find_invalid_byte("\xF4\x90\x80\x80"), 0u);  // above U+10FFFF
  EXPECT_EQ(find_invalid_byte("\xE2\x82"), 0u);          // cut off
}

}  // namespace
}  // namespace narrowgauge::trainer

#include "bench/timing_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>

namespace narrowgauge::bench {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const TimingSubject kSubject = {.date = "2026-11-24",
                                .machine = "a processor",
                                .threads = 2,
                                .model = "llama of dim 64",
                                .tokens_per_step = 1000,
                                .steps = 2,
                                .warmup = 1};

std::vector<ModeTiming> modes_of(double bf16_seconds, double float8_seconds) {
  return {{"bf16", {{{bf16_seconds, bf16_seconds}, 0.5, 3 << 20}}},
          {"float8.rowwise", {{{float8_seconds, float8_seconds}, 0.75, 2 << 20}}}};
}

TEST(TimingTable, ALineForEachMode) {
  const std::string text = to_text(kSubject, modes_of(0.5, 0.25));
  EXPECT_THAT(text,
              HasSubstr("llama of dim 64\na processor, 2 threads; 1 round of 2 steps after 1"));
  EXPECT_THAT(text, HasSubstr("bf16                             500.0     500.0     500.0       "
                              "2000   1.00x         3      0.50 s\n"));
  EXPECT_THAT(text, HasSubstr("float8.rowwise                   250.0     250.0     250.0       "
                              "4000   2.00x         2      0.75 s\n"));
}

TEST(TimingTable, JsonComesBack) {
  const EarlierTiming earlier = earlier_timing(to_json(kSubject, modes_of(0.5, 0.25)), "a.json");
  EXPECT_EQ(earlier.subject.date, "2026-11-24");
  EXPECT_EQ(earlier.subject.threads, 2);
  EXPECT_EQ(earlier.tokens_per_second.size(), 2u);
  EXPECT_DOUBLE_EQ(earlier.tokens_per_second.at("float8.rowwise"), 4000);
}

TEST(TimingTable, WhatIsNoSuchFile) {
  for (const char* text :
       {"", "[]", "{}", R"({"kind": "else"})", R"({"kind": "narrowgauge bench"})"}) {
    try {
      earlier_timing(text, "old.json");
      FAIL() << text;
    } catch (const std::runtime_error& error) {
      EXPECT_THAT(error.what(),
                  HasSubstr("old.json: expected what `narrowgauge bench --json` wrote"));
    }
  }
}

TEST(Compare, RatioOfEachMode) {
  const EarlierTiming earlier = earlier_timing(to_json(kSubject, modes_of(0.5, 0.25)), "a.json");
  const TimingComparison same = compare(kSubject, modes_of(0.5, 0.25), earlier, 0.95);
  EXPECT_TRUE(same.warnings.empty());
  EXPECT_TRUE(same.slower.empty());
  const TimingComparison slower = compare(kSubject, modes_of(0.4, 0.5), earlier, 0.95);
  EXPECT_THAT(slower.text,
              HasSubstr("bf16                               2000       2500   1.25x\n"));
  EXPECT_THAT(slower.text,
              HasSubstr("float8.rowwise                     4000       2000   0.50x\n"));
  EXPECT_THAT(slower.slower, ElementsAre("float8.rowwise"));
  EXPECT_TRUE(compare(kSubject, modes_of(0.4, 0.5), earlier, 0.5).slower.empty());
}

TEST(Compare, WarnsOfWhatElseChanged) {
  const EarlierTiming earlier = earlier_timing(to_json(kSubject, modes_of(0.5, 0.25)), "a.json");
  TimingSubject now = kSubject;
  now.date = "2026-12-01";
  now.machine = "another";
  now.threads = 4;
  now.model = "llama of dim 128";
  auto modes = modes_of(0.5, 0.25);
  modes[1].mode = "float8.tensorwise";
  EXPECT_THAT(
      compare(now, modes, earlier, 0).warnings,
      ElementsAre("the machine was a processor, is another", "the number of threads was 2, is 4",
                  "the model was llama of dim 64, is llama of dim 128",
                  "mode float8.tensorwise was not timed then"));
}

}  // namespace
}  // namespace narrowgauge::bench

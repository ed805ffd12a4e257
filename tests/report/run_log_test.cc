#include "report/run_log.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <sstream>

#include "report/metrics_csv.h"

namespace narrowgauge::report {
namespace {

namespace fs = std::filesystem;

class RunLogTest : public ::testing::Test {
 protected:
  RunLogTest() : folder_(fs::path(::testing::TempDir()) / "run") {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name) << text;
  }
  RunLog read() { return read_run_log(folder_); }
  std::string csv() {
    std::ostringstream out;
    write_metrics_csv(folder_ / "metrics.jsonl", out);
    return out.str();
  }

  fs::path folder_;
};

TEST_F(RunLogTest, ReadsSeriesAndValidation) {
  write("metrics.jsonl",
        "{\"step\":1,\"loss\":4.5,\"lr\":0.1}\n{\"step\":2,\"loss\":4.25,\"lr\":0.2}\n"
        "{\"step\":2,\"validation_loss\":4.4}\n");
  const RunLog log = read();
  EXPECT_EQ(log.name, "run");
  EXPECT_EQ(log.num_lines, 3);
  EXPECT_EQ(log.num_repeated, 0);
  EXPECT_EQ(log.series.at("loss").last(), 4.25);
  EXPECT_EQ(log.series.at("validation_loss").num_finite(), 1);
  EXPECT_EQ(log.series.count("step"), 0u);
}

TEST_F(RunLogTest, DropsTornAndForeignLinesAlone) {
  write("metrics.jsonl",
        "{\"step\":1,\"loss\":4.5}\n\nnot json\n[1,2]\n{\"loss\":1}\n{\"step\":\"x\",\"loss\":1}\n"
        "{\"step\":2,\"loss\":4.25}\n{\"step\":3,\"lo");
  const RunLog log = read();
  EXPECT_EQ(log.num_lines, 2);
  EXPECT_EQ(log.num_bad_lines, 5);
  EXPECT_EQ(log.series.at("loss").last_step(), 2);
}

TEST_F(RunLogTest, UnderstandsEverySpellingOfNotFinite) {
  write("metrics.jsonl",
        "{\"step\":1,\"loss\":NaN}\n{\"step\":2,\"loss\":null}\n{\"step\":3,\"loss\":Infinity}\n"
        "{\"step\":4,\"loss\":-Infinity,\"note\":\"NaN \\\" Infinity\"}\n"
        "{\"step\":5,\"loss\":\"nan\"}\n{\"step\":6,\"loss\":1.5}\n");
  const RunLog log = read();
  EXPECT_EQ(log.num_bad_lines, 0);
  EXPECT_EQ(log.series.at("loss").num_not_finite(), 5);
  EXPECT_EQ(log.series.at("loss").last(), 1.5);
  EXPECT_EQ(log.series.count("note"), 0u);
}

TEST_F(RunLogTest, NullThatNeverWasANumberIsNoValue) {
  write("metrics.jsonl", "{\"step\":1,\"float8\":null,\"x\":1}\n{\"step\":2,\"x\":null}\n");
  const RunLog log = read();
  EXPECT_EQ(log.series.count("float8"), 0u);
  EXPECT_TRUE(log.series.at("x").ends_not_finite());
}

TEST_F(RunLogTest, CountsStepsThatCameAgain) {
  write("metrics.jsonl",
        "{\"step\":1,\"loss\":1}\n{\"step\":2,\"loss\":1}\n{\"step\":2,\"loss\":1}\n"
        "{\"step\":3,\"loss\":1}\n");
  EXPECT_EQ(read().num_repeated, 1);
}

TEST_F(RunLogTest, FlattensNestedObjects) {
  write("metrics.jsonl",
        "{\"step\":1,\"float8\":{\"layers.0\":{\"saturated\":0.5},\"count\":3},\"list\":[1]}\n");
  const RunLog log = read();
  EXPECT_EQ(log.series.at("float8/layers.0/saturated").last(), 0.5);
  EXPECT_EQ(log.series.at("float8/count").last(), 3);
  EXPECT_EQ(log.series.size(), 2u);
}

TEST_F(RunLogTest, KeepsFirstAndLastSamples) {
  write("metrics.jsonl", "");
  std::string lines;
  for (int step = 1; step <= 100; ++step) {
    lines += "{\"step\":" + std::to_string(step) + ",\"prompt\":\"a\",\"text\":\"b\"}\n";
  }
  write("samples.jsonl", lines + "{\"step\":101,\"pro");
  const RunLog log = read();
  ASSERT_EQ(log.samples.size(), RunLog::kMaxSamples);
  EXPECT_EQ(log.samples.front().step, 1);
  EXPECT_EQ(log.samples.back().step, 100);
  EXPECT_EQ(log.num_lines, 0);
}

TEST_F(RunLogTest, ReadsSettingsOfAnyVersion) {
  write("metrics.jsonl", "");
  write("config.yaml",
        "# a comment: here\njob:\n  run_dir: runs/a\nunknown:\n  key: \"a: b\"\n  empty:\n");
  const RunLog log = read();
  EXPECT_EQ(log.settings.at("job.run_dir"), "runs/a");
  EXPECT_EQ(log.settings.at("unknown.key"), "\"a: b\"");
  EXPECT_EQ(log.settings.at("unknown.empty"), "");
  EXPECT_EQ(log.settings.size(), 3u);
}

TEST_F(RunLogTest, SaysWhatIsMissing) {
  EXPECT_THROW(read_run_log(folder_ / "nowhere"), std::runtime_error);
}

TEST_F(RunLogTest, WritesCsv) {
  write(
      "metrics.jsonl",
      "{\"step\":1,\"loss\":4.5,\"lr\":1e-05}\n{\"step\":1,\"validation_loss\":4.400000000000001}\n"
      "{\"step\":2,\"loss\":NaN,\"a,\\\"b\":-1}\n{\"step\":3,\"lo");
  EXPECT_EQ(csv(),
            "step,loss,lr,validation_loss,\"a,\"\"b\"\n"
            "1,4.5,1e-05,,\n1,,,4.400000000000001,\n2,nan,,,-1\n");
  write("metrics.jsonl", "");
  EXPECT_EQ(csv(), "step\n");
}

}  // namespace
}  // namespace narrowgauge::report

#include "bench/child_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <sstream>
#include <thread>

namespace narrowgauge::bench {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

int wait(ChildProcess& child) {
  for (int i = 0; i < 2000; ++i) {
    if (const auto code = child.exit_code()) {
      return *code;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return -1;
}

fs::path log_path(const char* name) { return fs::path(testing::TempDir()) / name; }

std::string text_of(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

TEST(ChildProcess, EndsWithItsCodeAndItsOutputIsAppended) {
  const fs::path log = log_path("appended.txt");
  std::ofstream(log) << "before\n";
  ChildProcess child({"/bin/sh", "-c", "echo out; echo err >&2; cat; exit 7"}, log);
  EXPECT_EQ(wait(child), 7);
  EXPECT_EQ(child.exit_code(), 7);
  EXPECT_EQ(text_of(log), "before\nout\nerr\n");
  EXPECT_EQ(last_line(log), "err");
}

TEST(ChildProcess, ArgumentsArriveAsTheyAre) {
  const fs::path log = log_path("arguments.txt");
  ChildProcess child({"/bin/echo", "a b", "$x", "[c,d]"}, log);
  EXPECT_EQ(wait(child), 0);
  EXPECT_EQ(last_line(log), "a b $x [c,d]");
}

TEST(ChildProcess, TerminateAsksAndTheSignalIsInTheCode) {
  ChildProcess child({"/bin/sleep", "60"}, log_path("sleep.txt"));
  EXPECT_EQ(child.exit_code(), std::nullopt);
  child.terminate();
  EXPECT_EQ(wait(child), 128 + 15);
}

TEST(ChildProcess, OneThatIsLeftIsKilled) {
  const auto started = std::chrono::steady_clock::now();
  { ChildProcess child({"/bin/sleep", "60"}, log_path("left.txt")); }
  EXPECT_LT(std::chrono::steady_clock::now() - started, std::chrono::seconds(10));
}

TEST(ChildProcess, WhatCannotStart) {
  ChildProcess child({"/nonexistent/program"}, log_path("none.txt"));
  EXPECT_EQ(wait(child), 127);
  EXPECT_THROW(ChildProcess({"/bin/true"}, "/nonexistent/folder/log.txt"), std::runtime_error);
  EXPECT_EQ(last_line("/nonexistent/folder/log.txt"), "");
}

}  // namespace
}  // namespace narrowgauge::bench

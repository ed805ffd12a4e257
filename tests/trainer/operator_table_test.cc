#include "trainer/operator_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace narrowgauge::trainer {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

constexpr int64_t kMs = 1'000'000;

HostEvent event(const char* name, int64_t begin_ms, int64_t end_ms) {
  return {.name = name, .thread = 1, .begin = begin_ms * kMs, .end = end_ms * kMs, .operands = ""};
}

TEST(OperatorTable, NoStep) {
  EXPECT_EQ(operator_table({}), "no step among the events\n");
  EXPECT_EQ(operator_table(std::vector{event("aten::mm", 0, 1)}), "no step among the events\n");
}

TEST(OperatorTable, SelfTimesAddUpToTheStep) {
  const std::vector<HostEvent> events = {
      event("step/backward", 40, 90),  // out of order
      event("autograd::engine::evaluate_function: CppNode<SwiGLU>", 50, 80),
      event("torch::autograd::CppNode<narrowgauge::nn::(anonymous namespace)::SwiGLU>", 55, 75),
      event("aten::mul", 60, 70),
      event("step", 0, 100),
      event("step/forward", 0, 30),
      event("aten::linear", 0, 20),
      event("aten::mm", 0, 15),
      event("aten::mul", 20, 30),
  };
  const std::string text = operator_table(events);
  EXPECT_THAT(text, StartsWith("100.000 ms a step, mean of 1: backward 50.000, forward 30.000, "
                               "the rest 20.000\n"));
  EXPECT_THAT(text, HasSubstr("    30.000  30.00                             backward      (in no "
                              "operator)\n"));  // 50 less 20 of the node
  EXPECT_THAT(text, HasSubstr("    20.000  20.00                                           (in no "
                              "operator)\n"));
  EXPECT_THAT(text, HasSubstr("    15.000  15.00     1.0   15000.0           forward       "
                              "aten::mm\n"));
  EXPECT_THAT(text, HasSubstr("     5.000   5.00     1.0    5000.0           forward       "
                              "aten::linear\n"));
  EXPECT_THAT(text, HasSubstr("    10.000  10.00     1.0   10000.0           backward      "
                              "nn::SwiGLU\n"));
  EXPECT_THAT(text, HasSubstr("    10.000  10.00     1.0   10000.0           forward       "
                              "aten::mul\n"));
  EXPECT_THAT(text, HasSubstr("    10.000  10.00     1.0   10000.0           backward      "
                              "aten::mul\n"));
}

TEST(OperatorTable, MeansOverStepsAndNothingBetweenThem) {
  std::vector<HostEvent> events = {event("step", 0, 10),       event("aten::mm", 0, 4),
                                   event("aten::log", 12, 18),  // between steps
                                   event("step", 20, 40),      event("aten::mm", 20, 30),
                                   event("aten::mm", 30, 36)};
  for (HostEvent& e : events) {
    if (e.name == "aten::mm") {
      e.flops = 1e9;
      e.operands = "2x3 3x4";
    }
  }
  const std::string text = operator_table(events);
  EXPECT_THAT(text, StartsWith("15.000 ms a step, mean of 2: the rest 15.000\n"));
  // 20 ms in 3 calls of 1 Gflop each: 150 GFLOP/s.
  EXPECT_THAT(text, HasSubstr("    10.000  66.67     1.5    6666.7      150                "
                              "aten::mm 2x3 3x4\n"));
  EXPECT_THAT(text, Not(HasSubstr("aten::log")));
}

TEST(OperatorTable, OtherThreadsAreNoPartOfAStep) {
  HostEvent other = event("aten::copy_", 2, 8);
  other.thread = 2;
  const std::string text = operator_table(std::vector{event("step", 0, 10), other});
  EXPECT_THAT(text, HasSubstr("    10.000 100.00"));
  EXPECT_THAT(text, Not(HasSubstr("copy_")));
}

TEST(OperatorTable, ShortLinesAreOne) {
  std::vector<HostEvent> events = {event("step", 0, 100'000)};
  for (int64_t i = 0; i < 3; ++i) {
    events.push_back(event(("aten::op" + std::to_string(i) + "%s").c_str(), 10 * i, 10 * i + 9));
  }
  events.push_back(event(std::string(1000, 'k').c_str(), 1000, 3000));
  const std::string text = operator_table(events);
  EXPECT_THAT(text, HasSubstr("    27.000   0.03     3.0    9000.0                         (lines "
                              "below 0.1 %: 3)\n"));
  EXPECT_THAT(text, HasSubstr(" " + std::string(90, 'k') + "\n"));
}

}  // namespace
}  // namespace narrowgauge::trainer

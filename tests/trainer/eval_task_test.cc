#include "trainer/eval_task.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "tests/data/temporary_directory.h"
#include "trainer/task_score.h"

namespace narrowgauge::trainer {
namespace {

class EvalTask : public ::testing::Test {
 protected:
  std::string file(const std::string& name, const std::string& content) {
    return folder_.write(name, content);
  }

  static std::string message_of(std::string_view task, const std::string& path) {
    try {
      read_task(task, path, 0);
    } catch (const std::exception& error) {
      return error.what();
    }
    return "";
  }

  data::TemporaryDirectory folder_;
};

TEST_F(EvalTask, HellaSwagTextIsThatOfTheHarness) {
  EXPECT_EQ(hellaswag_text(" How [title] Do it. [step] Wash  it [x"), "How. Do it. Wash it [x");
  EXPECT_EQ(hellaswag_text("a [substeps] b"), "a b");
  EXPECT_EQ(hellaswag_text("[a\nb] c"), "[a\nb] c");
}

TEST_F(EvalTask, ReadsHellaSwagObjects) {
  const auto items = read_task(
      "hellaswag",
      file("h.jsonl", R"({"ctx_a": "A man sits.", "ctx_b": "he LOOKS", "activity_label": "Roof", )"
                      R"("endings": ["up.", "down [x] here.", "é", "away"], "label": "2"})"
                      "\n"),
      0);
  ASSERT_EQ(items.size(), 1U);
  EXPECT_EQ(items[0].context, "Roof: A man sits. He looks");
  EXPECT_EQ(items[0].continuations[1], " down here.");
  EXPECT_EQ(items[0].lengths, (std::vector<int64_t>{3, 10, 1, 4}));
  EXPECT_EQ(items[0].gold, 2);
}

TEST_F(EvalTask, ReadsHellaSwagBlocks) {
  const auto path = file("h.txt", "Roof: x\n3\na\nb\nc\nd\r\nY: y\n0\ne\nf\ng\nh\n");
  const auto items = read_task("hellaswag", path, 0);
  ASSERT_EQ(items.size(), 2U);
  EXPECT_EQ(items[0].continuations, (std::vector<std::string>{" a", " b", " c", " d"}));
  EXPECT_EQ(items[0].gold, 3);
  EXPECT_EQ(items[1].context, "Y: y");
  EXPECT_EQ(read_task("hellaswag", path, 1).size(), 1U);
}

TEST_F(EvalTask, ReadsBothKindsOfPiqa) {
  const auto ours = read_task(
      "piqa", file("q.jsonl", R"({"query": "Question: why\n", "choices": ["a", "b"], "gold": 1})"),
      0);
  EXPECT_EQ(ours[0].context, "Question: why\nAnswer:");
  EXPECT_EQ(ours[0].gold, 1);
  file("valid-labels.lst", "0\n1\n");
  const std::string line = R"({"goal": "why", "sol1": "a", "sol2": "b"})";
  const auto items = read_task("piqa", file("valid.jsonl", line + "\n" + line + "\n"), 0);
  ASSERT_EQ(items.size(), 2U);
  EXPECT_EQ(items[0].context, ours[0].context);
  EXPECT_EQ(items[0].gold, 0);
  EXPECT_EQ(items[1].gold, 1);
}

TEST_F(EvalTask, ReadsBothKindsOfLambada) {
  const auto items = read_task("lambada",
                               file("l.jsonl",
                                    "{\"text\": \"we saw the sea\"}\n"
                                    "{\"context\": \"we saw the\", \"continuation\": \"sea\"}\n"),
                               0);
  ASSERT_EQ(items.size(), 2U);
  for (const TaskItem& item : items) {
    EXPECT_EQ(item.context, "we saw the");
    EXPECT_EQ(item.continuations, std::vector<std::string>{" sea"});
  }
}

TEST_F(EvalTask, NamesTheLineThatIsWrong) {
  EXPECT_NE(message_of("piqa", file("a", "{\"goal\": \"x\"}\n")).find("a:1: expected an item of"),
            std::string::npos);
  EXPECT_NE(message_of("hellaswag", file("b", "x\n0\na\n")).find("b:4: expected an ending"),
            std::string::npos);
  EXPECT_NE(
      message_of("hellaswag", file("c", "x\n7\na\nb\nc\nd\n")).find("c:2: expected the index"),
      std::string::npos);
  EXPECT_NE(message_of("lambada", file("d", "{\"text\": \"word\"}\n")).find("at least two words"),
            std::string::npos);
  EXPECT_NE(message_of("lambada", file("e", "\n")).find("got none"), std::string::npos);
  EXPECT_NE(message_of("piqa", folder_.file("none")).find("readable"), std::string::npos);
  EXPECT_NE(message_of("piqa", file("f", R"({"query": "q", "choices": ["a", "b"], "gold": 2})"))
                .find("index of the right one"),
            std::string::npos);
  EXPECT_THROW(read_task("mmlu", file("g", ""), 0), std::invalid_argument);
}

TEST(TaskScore, NormalisesByCharactersAndTakesTheFirstOfEquals) {
  const TaskItem item{"c", {" aa", " bbbbbbbb"}, {2, 8}, 1};
  // -4 / 2 < -8 / 8 although -4 > -8.
  const auto score = score_task({item}, {{-4, false}, {-8, false}});
  EXPECT_EQ(score.acc.value, 0.0);
  EXPECT_EQ(score.acc_norm->value, 1.0);
  EXPECT_FALSE(score.perplexity);
  const auto tie = score_task({item}, {{-4, false}, {-4, false}});
  EXPECT_EQ(tie.acc.value, 0.0);
  EXPECT_EQ(tie.acc_norm->value, 1.0);
}

TEST(TaskScore, OfOneContinuationIsGreedyDecoding) {
  const TaskItem item{"c", {" w"}, {1}, 0};
  const auto score = score_task({item, item}, {{-1, true}, {-3, false}});
  EXPECT_EQ(score.acc.value, 0.5);
  EXPECT_DOUBLE_EQ(score.acc.standard_error, 0.5);
  EXPECT_FALSE(score.acc_norm);
  EXPECT_DOUBLE_EQ(*score.perplexity, std::exp(2.0));
}

}  // namespace
}  // namespace narrowgauge::trainer

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace narrowgauge::trainer {

// A question whose answers are continuations of one context. LAMBADA has one, the right one.
struct TaskItem {
  std::string context;
  std::vector<std::string> continuations;  // with the space that parts them from the context
  std::vector<int64_t> lengths;  // in characters, without that space: what acc_norm divides by
  int64_t gold = 0;              // index of the right one
};

// The tasks that read_task knows.
inline constexpr std::string_view kTaskNames[] = {"hellaswag", "piqa", "lambada"};

// Reads a task's file as it is distributed; prompts are those of lm-evaluation-harness 0.4.
//   hellaswag  objects {ctx_a, ctx_b, activity_label, endings, label}, one a line; or llama.cpp's
//              text: 6 lines an item, the prompt, the index of the right ending, 4 endings
//   piqa       {goal, sol1, sol2}, the answers in a field label or, as distributed, in a file of
//              one digit a line, FILE's stem + "-labels.lst"; or {query, choices, gold}
//   lambada    {text}, whose last word is to be guessed; or {context, continuation}
// `limit`: at most so many items, 0 for all. Throws std::runtime_error that begins with path:line
// for a line that is none of these, std::invalid_argument for another task.
std::vector<TaskItem> read_task(std::string_view task, const std::string& path, int64_t limit);

// lm-evaluation-harness's hellaswag.utils.preprocess: WikiHow's marks in brackets removed.
std::string hellaswag_text(std::string text);

}  // namespace narrowgauge::trainer

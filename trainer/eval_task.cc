#include "trainer/eval_task.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <utility>

namespace narrowgauge::trainer {
namespace {

using nlohmann::json;

// A file's lines with their place for messages.
class Lines {
 public:
  explicit Lines(const std::string& path) : path_(path), stream_(path) {
    if (!stream_) {
      throw std::runtime_error(path + ": expected a readable file");
    }
  }

  bool next(std::string& line) {
    if (!std::getline(stream_, line)) {
      return false;
    }
    if (line.ends_with('\r')) {
      line.pop_back();
    }
    ++number_;
    return true;
  }

  std::string require(const std::string& what) {
    std::string line;
    if (!next(line)) {
      throw std::runtime_error(path_ + ":" + std::to_string(number_ + 1) + ": expected " + what +
                               ", got the end of the file");
    }
    return line;
  }

  [[noreturn]] void refuse(const std::string& expected, const std::string& got) const {
    throw std::runtime_error(path_ + ":" + std::to_string(number_) + ": expected " + expected +
                             ", got " + got);
  }

 private:
  std::string path_;
  std::ifstream stream_;
  int64_t number_ = 0;
};

int64_t num_characters(const std::string& utf8) {
  return std::count_if(utf8.begin(), utf8.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; });
}

bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }

std::string strip(const std::string& text) {
  const auto begin = std::find_if_not(text.begin(), text.end(), is_space);
  const auto end = std::find_if_not(text.rbegin(), std::make_reverse_iterator(begin), is_space);
  return {begin, end.base()};
}

std::string replace_all(const std::string& text, std::string_view from, std::string_view to) {
  std::string result;
  size_t at = 0;
  for (size_t found = text.find(from); found != std::string::npos; found = text.find(from, at)) {
    result.append(text, at, found - at).append(to);
    at = found + from.size();
  }
  return result.append(text, at);
}

// As Python's str.capitalize, of ASCII letters.
std::string capitalize(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](char c) {
    return static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  });
  if (!text.empty()) {
    text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
  }
  return text;
}

TaskItem choice_item(std::string context, const std::vector<std::string>& choices, int64_t gold,
                     const Lines& lines) {
  if (choices.size() < 2 || gold < 0 || gold >= static_cast<int64_t>(choices.size())) {
    lines.refuse("at least two answers and the index of the right one",
                 std::to_string(choices.size()) + " and " + std::to_string(gold));
  }
  TaskItem item{.context = std::move(context), .continuations = {}, .lengths = {}, .gold = gold};
  for (const std::string& choice : choices) {
    if (choice.empty()) {
      lines.refuse("answers that are not empty", "an empty one");
    }
    item.continuations.push_back(" " + choice);
    item.lengths.push_back(num_characters(choice));
  }
  return item;
}

// HellaSwag's label is a string in its files and a number in others.
int64_t label_of(const json& label, const Lines& lines) {
  if (label.is_number_integer()) {
    return label.get<int64_t>();
  }
  if (label.is_string() && label.get<std::string>().size() == 1 &&
      std::isdigit(label.get<std::string>()[0]) != 0) {
    return label.get<std::string>()[0] - '0';
  }
  lines.refuse("an index as label", label.dump());
}

TaskItem hellaswag_item(const json& object, const Lines& lines) {
  const std::string context = object.at("ctx_a").get<std::string>() + " " +
                              capitalize(object.at("ctx_b").get<std::string>());
  std::vector<std::string> endings;
  for (const json& ending : object.at("endings")) {
    endings.push_back(hellaswag_text(ending.get<std::string>()));
  }
  return choice_item(
      hellaswag_text(object.at("activity_label").get<std::string>() + ": " + context), endings,
      label_of(object.at("label"), lines), lines);
}

TaskItem hellaswag_block(const std::string& prompt, Lines& lines) {
  const std::string index = lines.require("the index of the right ending");
  if (index.size() != 1 || index[0] < '0' || index[0] > '3') {
    lines.refuse("the index of the right ending, 0 to 3", "'" + index + "'");
  }
  std::vector<std::string> endings;
  for (int i = 0; i < 4; ++i) {
    endings.push_back(lines.require("an ending"));
  }
  return choice_item(prompt, endings, index[0] - '0', lines);
}

TaskItem piqa_item(const json& object, std::optional<int64_t> label, const Lines& lines) {
  if (object.contains("query")) {
    std::string question = strip(object.at("query").get<std::string>());
    if (!question.starts_with("Question: ")) {
      question = "Question: " + question;
    }
    return choice_item(question + "\nAnswer:", object.at("choices").get<std::vector<std::string>>(),
                       object.at("gold").get<int64_t>(), lines);
  }
  if (!label) {
    label = label_of(object.at("label"), lines);
  }
  return choice_item("Question: " + object.at("goal").get<std::string>() + "\nAnswer:",
                     {object.at("sol1").get<std::string>(), object.at("sol2").get<std::string>()},
                     *label, lines);
}

TaskItem lambada_item(const json& object, const Lines& lines) {
  std::string context;
  std::string word;
  if (object.contains("continuation")) {
    context = object.at("context").get<std::string>();
    word = strip(object.at("continuation").get<std::string>());
  } else {
    const auto text = object.at("text").get<std::string>();
    const size_t space = text.rfind(' ');
    if (space == std::string::npos) {
      lines.refuse("a text of at least two words", "'" + text + "'");
    }
    context = text.substr(0, space);
    word = text.substr(space + 1);
  }
  if (word.empty()) {
    lines.refuse("a text that ends with a word", "one that ends with a space");
  }
  return {std::move(context), {" " + word}, {num_characters(word)}, 0};
}

// The digits of PIQA's file of answers; empty where there is none.
std::vector<int64_t> piqa_labels(const std::filesystem::path& path) {
  const auto file = path.parent_path() / (path.stem().string() + "-labels.lst");
  std::vector<int64_t> labels;
  if (std::filesystem::exists(file)) {
    Lines lines(file);
    for (std::string line; lines.next(line);) {
      if (line != "0" && line != "1") {
        lines.refuse("0 or 1", "'" + line + "'");
      }
      labels.push_back(line[0] - '0');
    }
  }
  return labels;
}

}  // namespace

std::string hellaswag_text(std::string text) {
  text = replace_all(strip(text), " [title]", ". ");
  // re.sub("\\[.*?\\]", "", text): . is no newline.
  std::string kept;
  for (size_t at = 0; at < text.size();) {
    const size_t close = text[at] == '[' ? text.find_first_of("]\n", at) : std::string::npos;
    if (close != std::string::npos && text[close] == ']') {
      at = close + 1;
    } else {
      kept += text[at++];
    }
  }
  return replace_all(kept, "  ", " ");
}

std::vector<TaskItem> read_task(std::string_view task, const std::string& path, int64_t limit) {
  if (std::find(std::begin(kTaskNames), std::end(kTaskNames), task) == std::end(kTaskNames)) {
    throw std::invalid_argument("expected hellaswag, piqa or lambada, got " + std::string(task));
  }
  const std::vector<int64_t> labels = task == "piqa" ? piqa_labels(path) : std::vector<int64_t>();
  std::vector<TaskItem> items;
  Lines lines(path);
  for (std::string line; lines.next(line);) {
    if (limit > 0 && static_cast<int64_t>(items.size()) == limit) {
      break;
    }
    if (line.empty()) {
      continue;
    }
    if (task == "hellaswag" && line[0] != '{') {
      items.push_back(hellaswag_block(line, lines));
      continue;
    }
    try {
      const json object = json::parse(line);
      const size_t index = items.size();
      const auto label = index < labels.size() ? std::optional(labels[index]) : std::nullopt;
      items.push_back(task == "hellaswag" ? hellaswag_item(object, lines)
                      : task == "piqa"    ? piqa_item(object, label, lines)
                                          : lambada_item(object, lines));
    } catch (const json::exception& error) {
      lines.refuse("an item of " + std::string(task), std::string("'") + error.what() + "'");
    }
  }
  if (items.empty()) {
    throw std::runtime_error(path + ": expected items of " + std::string(task) + ", got none");
  }
  return items;
}

}  // namespace narrowgauge::trainer

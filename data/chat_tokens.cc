#include "data/chat_tokens.h"

#include <algorithm>
#include <span>
#include <stdexcept>
#include <utility>

namespace narrowgauge::data {
namespace {

// Which tokens stand for which bytes. Tokenizers give no offsets, but the text of the first k
// tokens, as far as it agrees with the whole text, grows with k. Where a tokenizer normalises, so
// that its tokens do not give the text back, a place is where the ids of the text before it part
// from those of the whole.
class TokenPlaces {
 public:
  TokenPlaces(const Tokenizer& tokenizer, const std::string& text, std::span<const int32_t> ids)
      : tokenizer_(tokenizer),
        text_(text),
        ids_(ids),
        is_reversible_(bytes_of(ids.size()) == text.size()) {}

  // The token that holds byte `at`.
  size_t token_of(size_t at) const {
    return is_reversible_ ? first_where([=](size_t bytes) { return bytes > at; }) - 1
                          : common_ids(at);
  }

  // The first token that begins at byte `at` or behind it.
  size_t token_behind(size_t at) const {
    return is_reversible_ ? first_where([=](size_t bytes) { return bytes >= at; }) : common_ids(at);
  }

 private:
  // Bytes of the text that the first `count` tokens stand for, whole characters or more.
  size_t bytes_of(size_t count) const {
    const std::string part = tokenizer_.decode(ids_.first(count));
    return std::mismatch(part.begin(), part.end(), text_.begin(), text_.end()).first - part.begin();
  }

  // The fewest tokens whose bytes fit; all where none do.
  template <typename Fits>
  size_t first_where(Fits fits) const {
    size_t low = 0;
    size_t high = ids_.size();
    while (low < high) {
      const size_t middle = low + (high - low) / 2;
      if (fits(bytes_of(middle))) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }

  size_t common_ids(size_t at) const {
    const std::vector<int32_t> before = tokenizer_.encode(text_.substr(0, at));
    return std::mismatch(before.begin(), before.end(), ids_.begin(), ids_.end()).first -
           before.begin();
  }

  const Tokenizer& tokenizer_;
  const std::string& text_;
  std::span<const int32_t> ids_;
  bool is_reversible_;
};

}  // namespace

Conversation read_conversation(const Json& record) {
  if (!record.is_object() || !record.contains("messages")) {
    throw std::runtime_error(
        R"(expected {"messages": [{"role": "user", "content": "..."}, ...]} with data.chat_template)");
  }
  Conversation conversation{record.at("messages"), record.value("tools", Json())};
  if (!conversation.messages.is_array() || conversation.messages.empty()) {
    throw std::runtime_error("expected a list of messages, at least one");
  }
  for (const Json& message : conversation.messages) {
    if (!message.is_object() || !message.value("role", Json()).is_string()) {
      throw std::runtime_error(R"(expected messages with a "role", got )" + message.dump());
    }
  }
  return conversation;
}

ChatTokens encode_chat(const ChatTemplate& chat_template, const Tokenizer& tokenizer,
                       const Conversation& conversation, bool train_on_input) {
  if (train_on_input) {
    const std::string text = chat_template.render(conversation, false);
    return {tokenizer.encode(text), {}, text.size()};
  }
  const ChatText chat = chat_template.render_answers(conversation);
  ChatTokens tokens{tokenizer.encode(chat.text), {}, chat.text.size()};
  tokens.ignored.assign(tokens.ids.size(), 1);
  const TokenPlaces places(tokenizer, chat.text, tokens.ids);
  for (const auto& answer : chat.answers) {
    if (answer.begin >= answer.end) continue;
    const size_t begin = places.token_of(answer.begin);
    const size_t end = places.token_behind(answer.end);
    std::fill(tokens.ignored.begin() + static_cast<int64_t>(begin),
              tokens.ignored.begin() + static_cast<int64_t>(std::max(begin, end)), 0);
  }
  return tokens;
}

}  // namespace narrowgauge::data

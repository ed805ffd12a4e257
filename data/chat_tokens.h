#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/chat_template.h"
#include "data/tokenizer.h"

namespace narrowgauge::data {

// The tokens of a conversation; `ignored` has a 1 for each that is no target of the loss, or is
// empty where all are.
struct ChatTokens {
  std::vector<int32_t> ids;
  std::vector<uint8_t> ignored;
  uint64_t text_bytes = 0;
};

// What a line of a .jsonl file holds: {"messages": [{"role", "content"}, ...]}, "tools" if there
// are any. Throws std::runtime_error that says what is missing.
Conversation read_conversation(const Json& record);

// The ids of transformers' apply_chat_template(tokenize=True). Without train_on_input, targets are
// the tokens of which at least one byte belongs to an answer, as its assistant mask has them.
// Throws as ChatTemplate::render_answers.
ChatTokens encode_chat(const ChatTemplate& chat_template, const Tokenizer& tokenizer,
                       const Conversation& conversation, bool train_on_input);

}  // namespace narrowgauge::data

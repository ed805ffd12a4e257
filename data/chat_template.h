#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "jinja/template.h"

namespace narrowgauge::data {

using jinja::Json;

// A conversation: a list of messages {"role", "content", ...}, and the tools that the template may
// show to the model, null where there are none.
struct Conversation {
  Json messages;
  Json tools;
};

// A conversation as text, and which bytes of it a model is to say.
struct ChatText {
  std::string text;
  std::vector<jinja::Rendering::Span> answers;
};

// How a conversation becomes text: transformers' apply_chat_template without the tokenizer.
// Immutable: any number of threads may use it.
class ChatTemplate {
 public:
  // special_tokens: bos_token, eos_token and so on by name, each a string. Throws
  // std::runtime_error that begins with name:line.
  ChatTemplate(std::string source, std::string name, Json special_tokens);

  // spec: chatml, llama3, mistral or gemma, written here; "tokenizer" for the one beside the
  // tokenizer (chat_template.jinja, else the field of tokenizer_config.json); or a file. Special
  // tokens come from the tokenizer_config.json of tokenizer_path, a file or a directory; without
  // one they are unknown. Throws std::runtime_error for what is missing, naming it.
  static ChatTemplate load(const std::string& spec, const std::string& tokenizer_path);

  // With add_generation_prompt, up to where the model's answer begins. Throws std::runtime_error
  // for what the template refuses or does not support.
  std::string render(const Conversation& conversation, bool add_generation_prompt) const;

  // The text and its answers: what stands in the template's {% generation %} blocks; without such,
  // the content of each assistant message and what the template ends a turn with, white space at
  // the end left out. Throws as render does, and for an assistant message whose content is no
  // string in a template without {% generation %}.
  ChatText render_answers(const Conversation& conversation) const;

  // What ends an answer, "<|im_end|>" for one; may be empty.
  std::string turn_end() const;

  const std::string& source() const { return source_; }
  // Changes whenever a text could change.
  std::string fingerprint() const;

 private:
  jinja::Rendering render_all(const Conversation& conversation, bool add_generation_prompt) const;
  jinja::Rendering::Span content_of(const Conversation& conversation, const std::string& text,
                                    size_t message) const;
  std::string end_of_last_turn(Conversation conversation) const;

  std::string source_;
  Json special_tokens_;
  jinja::Template template_;
};

}  // namespace narrowgauge::data

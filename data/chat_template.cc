#include "data/chat_template.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <utility>

namespace narrowgauge::data {
namespace {

namespace fs = std::filesystem;
using Span = jinja::Rendering::Span;

// Formats that many base models are tuned to. Each marks what the model says.
const std::map<std::string, std::string>& built_in_templates() {
  static const std::map<std::string, std::string> all = {
      {"chatml", R"({%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{- message.content + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message.content + '<|im_end|>' -}}
{%- endif -%}
{{- '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%})"},
      {"llama3", R"({{- bos_token -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{- message.content | trim -}}{{- '<|eot_id|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message.content | trim -}}{{- '<|eot_id|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
{%- endif -%})"},
      {"mistral", R"({{- bos_token -}}
{%- set turns = namespace(system='', index=0) -%}
{%- for message in messages -%}
{%- if message.role == 'system' and loop.first -%}
{%- set turns.system = message.content + '\n\n' -%}
{%- else -%}
{%- if (message.role == 'user') != (turns.index % 2 == 0) -%}
{{- raise_exception('expected user and assistant in turns, got ' + message.role) -}}
{%- endif -%}
{%- if message.role == 'user' -%}
{{- '[INST] ' + (turns.system if turns.index == 0 else '') + message.content + ' [/INST]' -}}
{%- else -%}
{%- generation -%}{{- ' ' + message.content | trim -}}{{- eos_token -}}{%- endgeneration -%}
{%- endif -%}
{%- set turns.index = turns.index + 1 -%}
{%- endif -%}
{%- endfor -%})"},
      {"gemma", R"({{- bos_token -}}
{%- set first = namespace(system='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- set first.system = message.content + '\n\n' -%}
{%- elif message.role == 'assistant' -%}
{{- '<start_of_turn>model\n' -}}
{%- generation -%}{{- message.content | trim -}}{{- '<end_of_turn>' -}}{%- endgeneration -%}
{{- '\n' -}}
{%- else -%}
{{- '<start_of_turn>' + message.role + '\n' + first.system -}}
{{- message.content | trim -}}{{- '<end_of_turn>\n' -}}
{%- set first.system = '' -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%})"},
  };
  return all;
}

// A character for private use, which no text begins or ends with.
constexpr const char* kMark = "\xEE\x80\x80";

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  content << file.rdbuf();
  if (!file || content.str().empty()) {
    throw std::runtime_error(
        "expected a chat template (chatml, llama3, mistral, gemma, tokenizer "
        "or a file), got '" +
        path.string() + "', which cannot be read or is empty");
  }
  return std::move(content).str();
}

fs::path directory_of(const std::string& tokenizer_path) {
  const fs::path path(tokenizer_path);
  return fs::is_directory(path) ? path : path.parent_path();
}

Json read_config(const std::string& tokenizer_path) {
  const fs::path path = directory_of(tokenizer_path) / "tokenizer_config.json";
  if (tokenizer_path.empty() || !fs::exists(path)) return Json::object();
  Json config = Json::parse(read_file(path), nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) {
    throw std::runtime_error("'" + path.string() + "': expected a JSON object");
  }
  return config;
}

// Each "..._token" of the configuration, a string or an object with a content.
Json special_tokens_of(const Json& config) {
  Json tokens = Json::object();
  for (const auto& [name, value] : config.items()) {
    if (!name.ends_with("_token")) continue;
    if (value.is_string()) tokens[name] = value;
    if (value.is_object() && value.contains("content")) tokens[name] = value["content"];
  }
  return tokens;
}

std::string template_of(const Json& config, const std::string& tokenizer_path) {
  const fs::path file = directory_of(tokenizer_path) / "chat_template.jinja";
  if (!tokenizer_path.empty() && fs::exists(file)) return read_file(file);
  const auto found = config.find("chat_template");
  if (found != config.end() && found->is_string()) return found->get<std::string>();
  if (found != config.end() && found->is_array()) {
    for (const Json& named : *found) {
      if (named.is_object() && named.value("name", "") == "default") {
        return named.value("template", "");
      }
    }
  }
  throw std::runtime_error("expected a chat template beside the tokenizer '" + tokenizer_path +
                           "' (chat_template.jinja, or chat_template in tokenizer_config.json), "
                           "got none; name chatml, llama3, mistral, gemma or a file");
}

bool is_answer(const Json& message) { return message.value("role", "") == "assistant"; }

size_t common_prefix(const std::string& a, const std::string& b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

void strip_end(std::string& text) { text.erase(text.find_last_not_of(" \t\r\n") + 1); }

}  // namespace

ChatTemplate::ChatTemplate(std::string source, std::string name, Json special_tokens)
    : source_(std::move(source)),
      special_tokens_(std::move(special_tokens)),
      template_(source_, std::move(name)) {}

ChatTemplate ChatTemplate::load(const std::string& spec, const std::string& tokenizer_path) {
  const Json config = read_config(tokenizer_path);
  Json tokens = special_tokens_of(config);
  if (spec == "tokenizer") {
    return {template_of(config, tokenizer_path), "chat template of '" + tokenizer_path + "'",
            std::move(tokens)};
  }
  const auto built_in = built_in_templates().find(spec);
  if (built_in != built_in_templates().end()) {
    return {built_in->second, "chat template " + spec, std::move(tokens)};
  }
  return {read_file(spec), spec, std::move(tokens)};
}

jinja::Rendering ChatTemplate::render_all(const Conversation& conversation,
                                          bool add_generation_prompt) const {
  Json variables = special_tokens_;
  variables["messages"] = conversation.messages;
  variables["tools"] = conversation.tools;
  variables["documents"] = nullptr;
  variables["add_generation_prompt"] = add_generation_prompt;
  return template_.render(variables);
}

std::string ChatTemplate::render(const Conversation& conversation,
                                 bool add_generation_prompt) const {
  return render_all(conversation, add_generation_prompt).text;
}

// Where the content of a message stands: what changes with it.
Span ChatTemplate::content_of(const Conversation& conversation, const std::string& text,
                              size_t message) const {
  if (!conversation.messages[message].value("content", Json()).is_string()) {
    throw std::runtime_error(
        "expected a string as the content of message " + std::to_string(message + 1) +
        "; with a template without {% generation %}, answers are found by their content");
  }
  Conversation changed = conversation;
  changed.messages[message]["content"] = kMark;
  const std::string other = render(changed, false);
  const size_t begin = common_prefix(text, other);
  const size_t longest = std::min(text.size(), other.size()) - begin;
  size_t kept = 0;
  while (kept < longest && text[text.size() - 1 - kept] == other[other.size() - 1 - kept]) ++kept;
  return {begin, text.size() - kept};
}

std::string ChatTemplate::end_of_last_turn(Conversation conversation) const {
  while (!conversation.messages.empty() && !is_answer(conversation.messages.back())) {
    conversation.messages.erase(conversation.messages.size() - 1);
  }
  if (conversation.messages.empty()) return "";
  const std::string text = render(conversation, false);
  std::string end =
      text.substr(content_of(conversation, text, conversation.messages.size() - 1).end);
  strip_end(end);
  return end;
}

ChatText ChatTemplate::render_answers(const Conversation& conversation) const {
  jinja::Rendering all = render_all(conversation, false);
  if (template_.has_generation()) return {std::move(all.text), std::move(all.generation)};
  ChatText chat{std::move(all.text), {}};
  const std::string turn_end = end_of_last_turn(conversation);
  for (size_t i = 0; i < conversation.messages.size(); ++i) {
    if (!is_answer(conversation.messages[i])) continue;
    Span span = content_of(conversation, chat.text, i);
    if (chat.text.compare(span.end, turn_end.size(), turn_end) == 0) span.end += turn_end.size();
    chat.answers.push_back(span);
  }
  return chat;
}

std::string ChatTemplate::turn_end() const {
  Conversation conversation;
  conversation.messages = Json::array();
  for (const char* role : {"user", "assistant"}) {
    conversation.messages.push_back({{"role", role}, {"content", "text"}});
  }
  return end_of_last_turn(std::move(conversation));
}

std::string ChatTemplate::fingerprint() const {
  return "chat 1\n" + special_tokens_.dump() + "\n" + source_;
}

}  // namespace narrowgauge::data

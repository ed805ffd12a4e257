#include "data/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data/chat_tokens.h"
#include "tests/data/shifted_byte_tokenizer.h"
#include "tests/data/temporary_directory.h"

namespace narrowgauge::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Conversation conversation_of(const std::string& json) {
  return read_conversation(Json{{"messages", Json::parse(json)}});
}

const char* const kTwoTurns = R"([{"role": "system", "content": "be brief"},
  {"role": "user", "content": "hi"}, {"role": "assistant", "content": " hello "},
  {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}])";

std::vector<std::string> answers_of(const ChatText& chat) {
  std::vector<std::string> answers;
  for (const auto& span : chat.answers) {
    answers.push_back(chat.text.substr(span.begin, span.end - span.begin));
  }
  return answers;
}

TEST(ChatTemplate, MarksTheAnswersOfBuiltInTemplates) {
  const TemporaryDirectory directory;
  directory.write("tokenizer_config.json",
                  R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": null})");
  const auto answers = [&](const std::string& name) {
    return answers_of(
        ChatTemplate::load(name, directory.path()).render_answers(conversation_of(kTwoTurns)));
  };
  EXPECT_THAT(answers("chatml"), ElementsAre(" hello <|im_end|>", "hi<|im_end|>"));
  EXPECT_THAT(answers("llama3"), ElementsAre("hello<|eot_id|>", "hi<|eot_id|>"));
  EXPECT_THAT(answers("mistral"), ElementsAre(" hello</s>", " hi</s>"));
  EXPECT_THAT(answers("gemma"), ElementsAre("hello<end_of_turn>", "hi<end_of_turn>"));
  EXPECT_EQ(ChatTemplate::load("chatml", "").render(conversation_of(kTwoTurns), true),
            "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
            "<|im_start|>assistant\n hello <|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
            "<|im_start|>assistant\nhi<|im_end|>\n<|im_start|>assistant\n");
}

// Most templates of downloaded models mark nothing.
TEST(ChatTemplate, FindsAnswersWhereTheTemplateMarksNone) {
  const ChatTemplate chat(
      "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>\n{% endfor %}"
      "{% if add_generation_prompt %}<assistant>{% endif %}",
      "test", Json::object());
  EXPECT_THAT(answers_of(chat.render_answers(conversation_of(kTwoTurns))),
              ElementsAre("hello</assistant>", "hi</assistant>"));
  EXPECT_EQ(chat.turn_end(), "</assistant>");
  // An answer that repeats what stands around it, and an empty one.
  EXPECT_THAT(answers_of(chat.render_answers(conversation_of(
                  R"([{"role": "user", "content": "</assistant>"},
                      {"role": "assistant", "content": "<assistant></assistant>"},
                      {"role": "assistant", "content": ""}])"))),
              ElementsAre("<assistant></assistant></assistant>", "</assistant>"));
  EXPECT_THAT(error_of([&] {
                chat.render_answers(conversation_of(R"([{"role": "assistant", "content": null}])"));
              }),
              HasSubstr("expected a string"));
}

TEST(ChatTemplate, TakesTheTokenizersOwn) {
  const TemporaryDirectory directory;
  directory.write("a/tokenizer_config.json", R"({"chat_template": "{{ messages[0].content }}"})");
  directory.write("b/tokenizer_config.json",
                  R"({"chat_template": [{"name": "tool_use", "template": "no"},
                                        {"name": "default", "template": "yes"}]})");
  directory.write("c/tokenizer_config.json", R"({"chat_template": "field"})");
  directory.write("c/chat_template.jinja", "file");
  directory.write("d/tokenizer.json", "{}");
  const auto text = [&](const std::string& folder) {
    return ChatTemplate::load("tokenizer", directory.file(folder))
        .render(conversation_of(kTwoTurns), false);
  };
  EXPECT_EQ(text("a"), "be brief");
  EXPECT_EQ(text("b"), "yes");
  EXPECT_EQ(text("c"), "file");
  EXPECT_EQ(text("a/tokenizer_config.json"), "be brief");
  EXPECT_THAT(error_of([&] { text("d"); }), HasSubstr("got none; name chatml, llama3"));
  EXPECT_THAT(error_of([&] { ChatTemplate::load("chatlm", directory.file("d")); }),
              HasSubstr("got 'chatlm', which cannot be read"));
  const std::string file = directory.write("mine.jinja", "{{ 'x' }}");
  EXPECT_EQ(ChatTemplate::load(file, "").render(conversation_of(kTwoTurns), false), "x");
  directory.write("e/tokenizer_config.json", "[");
  EXPECT_THAT(error_of([&] { text("e"); }), HasSubstr("expected a JSON object"));
}

TEST(ChatTemplate, FingerprintsTellApart) {
  const ChatTemplate a("x", "test", Json::object());
  EXPECT_NE(a.fingerprint(), ChatTemplate("y", "test", Json::object()).fingerprint());
  EXPECT_NE(a.fingerprint(), ChatTemplate("x", "test", {{"bos_token", "<s>"}}).fingerprint());
  EXPECT_EQ(a.fingerprint(), ChatTemplate("x", "other", Json::object()).fingerprint());
}

TEST(ChatTokens, TargetsAreTheTokensOfAnswers) {
  const ChatTemplate chat = ChatTemplate::load("chatml", "");
  const ShiftedByteTokenizer tokenizer;
  const auto conversation = conversation_of(kTwoTurns);
  const ChatTokens tokens = encode_chat(chat, tokenizer, conversation, false);
  std::string targets;
  for (size_t i = 0; i < tokens.ids.size(); ++i) {
    if (tokens.ignored[i] == 0) targets += static_cast<char>(tokens.ids[i] - 1);
  }
  EXPECT_EQ(targets, " hello <|im_end|>hi<|im_end|>");
  const ChatTokens all = encode_chat(chat, tokenizer, conversation, true);
  EXPECT_EQ(all.ids, tokens.ids);
  EXPECT_TRUE(all.ignored.empty());
  EXPECT_EQ(tokenizer.decode(all.ids), chat.render(conversation, false));
}

TEST(ChatTokens, RefusesWhatIsNoConversation) {
  for (const char* wrong :
       {R"({"text": "a"})", R"({"messages": []})", R"({"messages": "a"})", R"({"messages": [1]})",
        R"({"messages": [{"content": "a"}]})", R"({"messages": [{"role": 1}]})", "[]"}) {
    EXPECT_THAT(error_of([&] { read_conversation(Json::parse(wrong)); }), HasSubstr("expected"))
        << wrong;
  }
}

}  // namespace
}  // namespace narrowgauge::data

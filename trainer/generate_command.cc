#include "trainer/generate_command.h"

#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "data/chat_template.h"
#include "data/utf8.h"
#include "nn/sampling.h"
#include "trainer/continuation.h"
#include "trainer/device.h"
#include "trainer/load_model.h"

namespace narrowgauge::trainer {
namespace {

void print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

struct Prompt {
  std::string text;
  std::vector<int64_t> ids;
  std::optional<int64_t> turn_end;  // of a conversation, where that is one token
};

// The tokenizer adds nothing to a conversation: its template writes what begins it.
Prompt make_conversation(const data::Tokenizer& tokenizer, const GenerateOptions& options) {
  const auto chat = data::ChatTemplate::load(options.chat_template,
                                             model_directory(options.model).string() + "/");
  const data::Json message = {{"role", "user"}, {"content", options.prompt}};
  Prompt prompt;
  prompt.text = chat.render({data::Json::array({message}), nullptr}, true);
  const std::vector<int32_t> ids = tokenizer.encode(prompt.text);
  prompt.ids.assign(ids.begin(), ids.end());
  const std::vector<int32_t> turn_end = tokenizer.encode(chat.turn_end());
  if (turn_end.size() == 1) {
    prompt.turn_end = turn_end[0];
  }
  return prompt;
}

Prompt make_prompt(const LoadedModel& loaded, const GenerateOptions& options) {
  if (!loaded.tokenizer) {
    throw UsageError(options.model + " has no tokenizer; name one with --tokenizer");
  }
  Prompt prompt = options.chat_template.empty()
                      ? Prompt{options.prompt, encode_prompt(*loaded.tokenizer, options.prompt), {}}
                      : make_conversation(*loaded.tokenizer, options);
  const std::vector<int64_t>& ids = prompt.ids;
  const int64_t max_seq_len = loaded.model->config().max_seq_len;
  if (ids.empty() || static_cast<int64_t>(ids.size()) >= max_seq_len) {
    throw UsageError("--prompt: expected 1 to " + std::to_string(max_seq_len - 1) +
                     " tokens for this model, got " + std::to_string(ids.size()));
  }
  const int64_t room = max_seq_len - static_cast<int64_t>(ids.size());
  if (options.max_new_tokens > room) {
    std::fprintf(stderr, "the model's %ld positions end after %ld new tokens\n", max_seq_len, room);
  }
  return prompt;
}

}  // namespace

int generate_command(const GenerateOptions& options) {
  const LoadedModel loaded =
      load_model(options.model, options.tokenizer, select_device(options.device));
  const Prompt prompt = make_prompt(loaded, options);
  nn::SamplingOptions sampling;
  sampling.max_new_tokens = options.max_new_tokens;
  sampling.temperature = options.temperature;
  sampling.top_p = options.top_p;
  sampling.seed = static_cast<uint64_t>(options.seed);
  sampling.stop_tokens = loaded.eos_tokens;
  if (prompt.turn_end) {
    sampling.stop_tokens.push_back(*prompt.turn_end);
  }

  Continuation continuation(*loaded.tokenizer, prompt.ids);
  if (!options.json && options.chat_template.empty()) {  // an answer stands alone
    print(options.prompt);
  }
  const auto started = std::chrono::steady_clock::now();
  const std::vector<int64_t> tokens =
      nn::generate(*loaded.model, prompt.ids, sampling, [&](int64_t token) {
        continuation.add(token);
        if (!options.json) {
          print(continuation.take());
        }
      });
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  if (options.json) {
    const nlohmann::ordered_json object = {
        {"prompt", data::replace_invalid_utf8(prompt.text)},
        {"text", continuation.finish()},
        {"prompt_tokens", prompt.ids},
        {"tokens", tokens},
        {"tokens_per_second", static_cast<double>(tokens.size()) / seconds}};
    print(object.dump() + "\n");
  } else {
    print(continuation.finish() + "\n");
  }
  return kExitDone;
}

}  // namespace narrowgauge::trainer

#include "trainer/generate_command.h"

#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "data/utf8.h"
#include "nn/sampling.h"
#include "trainer/device.h"
#include "trainer/load_model.h"

namespace narrowgauge::trainer {
namespace {

constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// Writes text as tokens arrive. A character whose bytes are spread over tokens decodes to U+FFFD
// until its last byte is there, so an incomplete end is held back.
class TextStream {
 public:
  explicit TextStream(const data::Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void add(int64_t token) {
    tokens_.push_back(static_cast<int32_t>(token));
    const std::string text = decode();
    if (!text.ends_with(kReplacementCharacter)) {
      write_from(text);
    }
  }

  void finish() { write_from(decode() + "\n"); }

 private:
  std::string decode() const { return data::replace_invalid_utf8(tokenizer_.decode(tokens_)); }

  void write_from(const std::string& text) {
    std::fwrite(text.data() + written_, 1, text.size() - written_, stdout);
    std::fflush(stdout);
    written_ = text.size();
  }

  const data::Tokenizer& tokenizer_;
  std::vector<int32_t> tokens_;
  size_t written_ = 0;
};

// What a model that was trained on whole documents expects at the start.
std::vector<int64_t> encode_prompt(const data::Tokenizer& tokenizer, const std::string& prompt) {
  std::vector<int64_t> ids;
  if (tokenizer.bos_id()) {
    ids.push_back(*tokenizer.bos_id());
  }
  for (const int32_t id : tokenizer.encode(prompt)) {
    ids.push_back(id);
  }
  if (ids.empty()) {
    throw UsageError(
        "--prompt: expected some text, since the tokenizer has no token that begins a "
        "document; got none");
  }
  return ids;
}

}  // namespace

int generate_command(const GenerateOptions& options) {
  const LoadedModel loaded =
      load_model(options.model, options.tokenizer, select_device(options.device, 1));
  if (!loaded.tokenizer) {
    throw UsageError(options.model + " has no tokenizer; name one with --tokenizer");
  }
  const std::vector<int64_t> prompt = encode_prompt(*loaded.tokenizer, options.prompt);
  nn::SamplingOptions sampling;
  sampling.max_new_tokens = options.max_new_tokens;
  sampling.temperature = options.temperature;
  sampling.top_p = options.top_p;
  sampling.seed = static_cast<uint64_t>(options.seed);
  sampling.stop_tokens = loaded.eos_tokens;

  TextStream stream(*loaded.tokenizer);
  if (!options.json) {
    std::fputs(options.prompt.c_str(), stdout);
  }
  const auto started = std::chrono::steady_clock::now();
  const std::vector<int64_t> tokens =
      nn::generate(*loaded.model, prompt, sampling, [&](int64_t token) {
        if (!options.json) {
          stream.add(token);
        }
      });
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  if (options.json) {
    const std::string text = data::replace_invalid_utf8(
        loaded.tokenizer->decode(std::vector<int32_t>(tokens.begin(), tokens.end())));
    const nlohmann::ordered_json object = {
        {"prompt", options.prompt},
        {"text", text},
        {"prompt_tokens", prompt},
        {"tokens", tokens},
        {"tokens_per_second", static_cast<double>(tokens.size()) / seconds}};
    std::puts(object.dump().c_str());
  } else {
    stream.finish();
  }
  return kExitDone;
}

}  // namespace narrowgauge::trainer

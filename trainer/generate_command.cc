#include "trainer/generate_command.h"

#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

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

std::vector<int64_t> prompt_ids(const LoadedModel& loaded, const GenerateOptions& options) {
  if (!loaded.tokenizer) {
    throw UsageError(options.model + " has no tokenizer; name one with --tokenizer");
  }
  std::vector<int64_t> ids = encode_prompt(*loaded.tokenizer, options.prompt);
  const int64_t max_seq_len = loaded.model->config().max_seq_len;
  if (ids.empty() || static_cast<int64_t>(ids.size()) >= max_seq_len) {
    throw UsageError("--prompt: expected 1 to " + std::to_string(max_seq_len - 1) +
                     " tokens for this model, got " + std::to_string(ids.size()));
  }
  const int64_t room = max_seq_len - static_cast<int64_t>(ids.size());
  if (options.max_new_tokens > room) {
    std::fprintf(stderr, "the model's %ld positions end after %ld new tokens\n", max_seq_len, room);
  }
  return ids;
}

}  // namespace

int generate_command(const GenerateOptions& options) {
  const LoadedModel loaded =
      load_model(options.model, options.tokenizer, select_device(options.device));
  const std::vector<int64_t> prompt = prompt_ids(loaded, options);
  nn::SamplingOptions sampling;
  sampling.max_new_tokens = options.max_new_tokens;
  sampling.temperature = options.temperature;
  sampling.top_p = options.top_p;
  sampling.seed = static_cast<uint64_t>(options.seed);
  sampling.stop_tokens = loaded.eos_tokens;

  Continuation continuation(*loaded.tokenizer, prompt);
  if (!options.json) {
    print(options.prompt);
  }
  const auto started = std::chrono::steady_clock::now();
  const std::vector<int64_t> tokens =
      nn::generate(*loaded.model, prompt, sampling, [&](int64_t token) {
        continuation.add(token);
        if (!options.json) {
          print(continuation.take());
        }
      });
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  if (options.json) {
    const nlohmann::ordered_json object = {
        {"prompt", data::replace_invalid_utf8(options.prompt)},
        {"text", continuation.finish()},
        {"prompt_tokens", prompt},
        {"tokens", tokens},
        {"tokens_per_second", static_cast<double>(tokens.size()) / seconds}};
    print(object.dump() + "\n");
  } else {
    print(continuation.finish() + "\n");
  }
  return kExitDone;
}

}  // namespace narrowgauge::trainer

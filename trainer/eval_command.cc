#include "trainer/eval_command.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/source_files.h"
#include "data/text_source.h"
#include "data/token_file.h"
#include "trainer/device.h"
#include "trainer/load_model.h"
#include "trainer/perplexity.h"
#include "trainer/stage_progress.h"

namespace narrowgauge::trainer {
namespace {

constexpr int64_t kLongestDefaultWindow = 2048;
constexpr int64_t kTokensPerBatch = 4096;
constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

int64_t count_words(const std::string& text) {
  int64_t words = 0;
  bool in_word = false;
  for (const char c : text) {
    const bool is_space = std::isspace(static_cast<unsigned char>(c)) != 0;
    words += !is_space && !in_word ? 1 : 0;
    in_word = !is_space;
  }
  return words;
}

// Where the tokenizer has no token that begins a document, the first one has nothing to be
// predicted from, and its text does not count.
ScoredDocument score_text(const std::string& text, const data::Tokenizer& tokenizer) {
  const std::vector<int32_t> ids = tokenizer.encode_document(text);
  std::string scored = text;
  if (!ids.empty() && ids.front() != tokenizer.bos_id()) {
    scored = text.substr(std::min(text.size(), tokenizer.decode({&ids.front(), 1}).size()));
  }
  return {{ids.begin(), ids.end()}, static_cast<int64_t>(scored.size()), count_words(scored)};
}

ScoredDocument read_token_file(const std::string& path, int64_t vocab_size) {
  const auto storage = data::open_token_file(path, vocab_size);
  ScoredDocument document;
  document.tokens.resize(storage->num_tokens());
  storage->read(0, document.tokens);
  return document;
}

std::vector<ScoredDocument> read_documents(const EvalOptions& options, const LoadedModel& loaded) {
  std::vector<ScoredDocument> documents;
  std::vector<std::string> texts;
  for (const std::string& path : data::expand_paths(options.data)) {
    if (std::filesystem::path(path).extension() == ".bin") {
      documents.push_back(read_token_file(path, loaded.model->config().vocab_size));
    } else {
      texts.push_back(path);
    }
  }
  if (texts.empty()) {
    return documents;
  }
  if (!documents.empty()) {
    throw UsageError("--data: expected text files or .bin files of token ids, got both");
  }
  if (!loaded.tokenizer) {
    throw UsageError(options.model + " has no tokenizer; name one with --tokenizer");
  }
  for (const std::string& text : data::read_documents(texts, {}, kNoLimit)) {
    documents.push_back(score_text(text, *loaded.tokenizer));
  }
  return documents;
}

void print_table(const Perplexity& result, int64_t seq_len) {
  std::printf("tokens               %ld\n", result.num_tokens);
  std::printf("window               %ld\n", seq_len);
  std::printf("loss (nats/token)    %.6f\n", result.loss());
  std::printf("perplexity per token %.4f\n", result.per_token());
  if (result.per_byte()) {
    std::printf("perplexity per byte  %.4f\n", *result.per_byte());
    std::printf("perplexity per word  %.4f\n", result.per_word().value_or(0.0));
  }
}

nlohmann::ordered_json to_json(const std::optional<double>& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json();
}

}  // namespace

int eval_command(const EvalOptions& options) {
  const LoadedModel loaded =
      load_model(options.model, options.tokenizer, select_device(options.device, 1));
  const int64_t max_seq_len = loaded.model->config().max_seq_len;
  const int64_t seq_len =
      options.seq_len > 0 ? options.seq_len : std::min(max_seq_len, kLongestDefaultWindow);
  if (seq_len > max_seq_len) {
    throw UsageError("--seq-len: expected at most the model's " + std::to_string(max_seq_len) +
                     ", got " + std::to_string(seq_len));
  }
  const std::vector<ScoredDocument> documents = read_documents(options, loaded);
  if (std::ranges::none_of(documents, [](const auto& d) { return d.tokens.size() > 1; })) {
    throw std::runtime_error("--data: expected a document of at least two tokens, got none");
  }
  StageProgress progress;
  const Perplexity result = evaluate_perplexity(
      *loaded.model, documents, seq_len, std::max<int64_t>(1, kTokensPerBatch / seq_len),
      [&](double fraction) { progress.update("scoring", fraction); });
  if (!options.json) {
    print_table(result, seq_len);
    return kExitDone;
  }
  const nlohmann::ordered_json object = {{"task", "perplexity"},
                                         {"model", options.model},
                                         {"seq_len", seq_len},
                                         {"tokens", result.num_tokens},
                                         {"bytes", result.num_bytes},
                                         {"words", result.num_words},
                                         {"loss", result.loss()},
                                         {"perplexity_per_token", result.per_token()},
                                         {"perplexity_per_byte", to_json(result.per_byte())},
                                         {"perplexity_per_word", to_json(result.per_word())}};
  std::puts(object.dump().c_str());
  return kExitDone;
}

}  // namespace narrowgauge::trainer

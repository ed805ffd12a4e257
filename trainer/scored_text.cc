#include "trainer/scored_text.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <limits>
#include <stdexcept>

#include "data/source_files.h"
#include "data/text_source.h"
#include "data/token_file.h"
#include "trainer/command_line.h"

namespace narrowgauge::trainer {
namespace {

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

}  // namespace

std::vector<ScoredDocument> read_scored_documents(const std::vector<std::string>& patterns,
                                                  const data::Tokenizer* tokenizer,
                                                  int64_t vocab_size) {
  std::vector<ScoredDocument> documents;
  std::vector<std::string> texts;
  for (const std::string& path : data::expand_paths(patterns)) {
    if (std::filesystem::path(path).extension() == ".bin") {
      documents.push_back(read_token_file(path, vocab_size));
    } else {
      texts.push_back(path);
    }
  }
  if (!documents.empty() && !texts.empty()) {
    throw UsageError("expected text files or .bin files of token ids, got both: " + texts.front());
  }
  if (!texts.empty() && tokenizer == nullptr) {
    throw UsageError("the model has no tokenizer for " + texts.front() +
                     "; name one with --tokenizer");
  }
  if (!texts.empty()) {
    for (const std::string& text : data::read_documents(texts, {}, kNoLimit)) {
      documents.push_back(score_text(text, *tokenizer));
    }
  }
  if (std::ranges::none_of(documents, [](const auto& d) { return d.tokens.size() > 1; })) {
    throw std::runtime_error("expected a document of at least two tokens, got none");
  }
  return documents;
}

}  // namespace narrowgauge::trainer

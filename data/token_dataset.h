#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/held_out.h"
#include "data/prepare_tokens.h"
#include "data/tokenizer.h"

namespace narrowgauge::data {

// One split of the data: ranges of token streams, seen as one stream. Immutable, so any number of
// threads may read it.
class TokenDataset {
 public:
  explicit TokenDataset(std::vector<TokenRange> ranges);

  int64_t num_tokens() const { return starts_.back(); }
  // Documents of which at least one token is in the split.
  int64_t num_documents() const { return num_documents_; }
  // Windows of seq_len + 1 tokens at a stride of seq_len that fit in the stream.
  int64_t num_windows(int64_t seq_len) const;

  // Copies tokens [begin, begin + out.size()). Throws std::out_of_range when they are not all in
  // the stream.
  void read(int64_t begin, std::span<int64_t> out) const;

  // For each of those tokens 1 if it is no target of the loss, else 0. Throws as read does.
  void read_ignored(int64_t begin, std::span<uint8_t> out) const;

  // Where each document ends, in ascending order; a range ends one. 8 bytes each.
  std::vector<int64_t> document_ends() const;

 private:
  // Calls visit(range, first position in the range's stream, part of out) for the parts of out.
  template <typename T, typename Visit>
  void for_each_part(int64_t begin, std::span<T> out, Visit visit) const;

  std::vector<TokenRange> ranges_;
  std::vector<int64_t> starts_;  // of each range in this stream, then num_tokens
  int64_t num_documents_ = 0;
};

struct DatasetOptions {
  // Files, globs and directories (see expand_paths) of text, .jsonl, .parquet, .bin (see
  // open_token_file) and .tokens (what prepare_tokens wrote), or "random_tokens" alone.
  std::vector<std::string> train;
  // The same; empty holds validation_fraction of the training data out instead (see hold_out).
  std::vector<std::string> validation;
  double validation_fraction = 0.05;
  std::string text_field = "text";
  std::string invalid_utf8 = "error";  // or "replace"
  ChatFormat chat;                     // with a template, lines of .jsonl files are conversations
  bool separates_sources = false;      // see Split::sources
  std::string cache_dir;               // empty: default_cache_dir()
  // Of the model: every id must be below it. 0: not checked.
  int64_t vocab_size = 0;
  uint64_t seed = 0;    // of random_tokens alone
  int num_threads = 0;  // 0: one for each processor
  ProgressCallback progress;
};

struct Split {
  std::shared_ptr<TokenDataset> train;
  std::shared_ptr<TokenDataset> validation;  // null when nothing is held out
  // With separates_sources: the part of train that comes from each entry of DatasetOptions::train,
  // in their order; else none.
  std::vector<std::shared_ptr<TokenDataset>> sources;
};

// Opens the data, tokenizing text first where no cache holds it. `tokenizer` may be null when all
// sources are token ids. Random tokens hold nothing out by themselves; named as validation they are
// another stream of 2^20 tokens. Throws std::runtime_error or std::invalid_argument that names the
// file and the remedy.
Split open_dataset(const DatasetOptions& options, const Tokenizer* tokenizer);

// Throws std::invalid_argument with both numbers when the tokenizer can produce ids that the model
// has no embedding for.
void check_vocab_size(int64_t model_vocab_size, const Tokenizer& tokenizer);

}  // namespace narrowgauge::data

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "trainer/scored_windows.h"

namespace narrowgauge::trainer {

// The documents of text files, or of .bin files of token ids, as `patterns` name them (see
// data::expand_paths), encoded with their beginning and end. Where the tokenizer has no token that
// begins a document, its first token has nothing to be predicted from, and its text does not count.
// Throws UsageError for a mixture of both kinds or text without a tokenizer, std::runtime_error
// where no document has two tokens.
std::vector<ScoredDocument> read_scored_documents(const std::vector<std::string>& patterns,
                                                  const data::Tokenizer* tokenizer,
                                                  int64_t vocab_size);

}  // namespace narrowgauge::trainer

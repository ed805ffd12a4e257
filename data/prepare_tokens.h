#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/encode_pipeline.h"
#include "data/source_files.h"
#include "data/text_source.h"
#include "data/token_cache.h"
#include "data/tokenizer.h"

namespace narrowgauge::data {

// Called from the thread that prepares: what is being done, how much of it in [0, 1], and the
// tokens so far.
using ProgressCallback =
    std::function<void(std::string_view stage, double fraction, int64_t tokens)>;

struct PrepareOptions {
  TextOptions text;
  ChatFormat chat = {};   // with a template, each line of the files is a conversation
  std::string cache_dir;  // empty: default_cache_dir()
  int num_threads = 0;    // 0: one for each processor
  ProgressCallback progress;
};

// $NARROWGAUGE_CACHE/tokens, else ~/.cache/narrowgauge/tokens.
std::string default_cache_dir();

// The tokens of all documents of `files`, in their order. A document is encoded with
// encode_document and ends with the tokenizer's end-of-document token, if it has one; documents
// without text are left out.
//
// Made once: the cache file is named after a hash of the tokenizer, the options, and each file's
// path, size and time of change, and is reused while it is there and undamaged. A damaged one is
// made anew (progress is told why). Several processes or threads may call at once: one makes the
// cache, the others wait for it. Memory: a few documents a thread.
//
// Throws std::runtime_error for text that cannot be read or decoded (see TextSource), when no
// document has any text, or when the cache cannot be written.
std::shared_ptr<const TokenCache> prepare_tokens(const std::vector<SourceFile>& files,
                                                 const Tokenizer& tokenizer,
                                                 const PrepareOptions& options);

}  // namespace narrowgauge::data

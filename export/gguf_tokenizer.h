#pragma once

#include <cstdint>

#include "data/tokenizer.h"
#include "export/gguf_header.h"

namespace narrowgauge::exports {

// The keys tokenizer.* of a GGUF file, with which llama.cpp gives the ids of `tokenizer`. The list
// of tokens is filled to `vocab_size`, the rows of the model's embedding, with tokens that no text
// becomes. Null, a model of token ids alone: llama.cpp's "none".
//
//   bytes          its byte-level BPE without merges
//   huggingface    its byte-level BPE ("gpt2"), where llama.cpp has the pre-tokenizer: GPT-2's
//                  pattern, Llama 3's, Qwen 2's
//   gpt2           the same
//   sentencepiece  its "llama", BPE models without normalizer alone
//
// A normalizer NFC, as Qwen's files have it, is left out: llama.cpp has none. Throws
// std::runtime_error for what llama.cpp would tokenize otherwise, with the remedy.
GgufMetadata gguf_tokenizer_metadata(const data::Tokenizer* tokenizer, int64_t vocab_size);

}  // namespace narrowgauge::exports

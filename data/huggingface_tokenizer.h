#pragma once

#include <memory>
#include <string>

#include "data/tokenizer.h"

namespace narrowgauge::data {

// Loads a tokenizer.json with a BPE model, or the one in the directory `path`. Beside it,
// tokenizer_config.json names the tokens that begin and end a document.
//
// Understood: model BPE (merges as strings or pairs, ignore_merges, byte_fallback, unk, fuse_unk);
// pre-tokenizers ByteLevel (last), Split, Digits, Punctuation, Sequence; normalizers NFC, NFD,
// NFKC, NFKD, Prepend, Replace, Sequence; decoders ByteLevel, Replace, ByteFallback, Fuse, Strip,
// Sequence; post-processors TemplateProcessing, ByteLevel, Sequence; added tokens. Anything else is
// an error that names it: ids that silently differ are worse. Truncation and padding in the file
// are not applied: they belong to a batch, not to a text.
//
// Throws std::runtime_error that begins with the file's name.
std::unique_ptr<Tokenizer> load_huggingface_tokenizer(const std::string& path);

}  // namespace narrowgauge::data

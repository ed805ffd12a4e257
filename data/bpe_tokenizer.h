#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "data/bpe_model.h"
#include "data/pre_tokenizer.h"
#include "data/tokenizer.h"
#include "data/tokenizer_added_tokens.h"
#include "data/tokenizer_decoder.h"
#include "data/tokenizer_normalizer.h"

namespace narrowgauge::data {

// What the loaders of huggingface and gpt2 files put together.
struct BpeTokenizerParts {
  BpeModel model;
  std::vector<AddedToken> added_tokens;
  TokenizerNormalizer normalizer;
  PreTokenizer pre_tokenizer;
  TokenDecoder decoder;
  std::vector<int32_t> document_prefix;
  std::vector<int32_t> document_suffix;
  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;
  std::vector<TokenizerFile> files;
  std::string fingerprint;
};

// Added tokens, normalizer, pre-tokenizer, model, template, decoder: the pipeline of Hugging Face
// tokenizers around a BPE model.
class BpeTokenizer : public Tokenizer {
 public:
  explicit BpeTokenizer(BpeTokenizerParts parts);

  std::vector<int32_t> encode(std::string_view text) const override;
  std::string decode(std::span<const int32_t> ids) const override;
  int64_t vocab_size() const override { return static_cast<int64_t>(tokens_.size()); }
  std::optional<int32_t> bos_id() const override { return parts_.bos_id; }
  std::optional<int32_t> eos_id() const override { return parts_.eos_id; }
  std::vector<int32_t> encode_document(std::string_view text) const override;
  std::vector<TokenizerFile> exported_files() const override { return parts_.files; }
  std::string fingerprint() const override { return parts_.fingerprint; }

 private:
  struct Scratch {
    RegexScratch regex;
    BpeScratch bpe;
  };
  // A scratch out of the pool, back into it at the end of the scope: caches stay warm, and the
  // lock is taken twice a text.
  class Lease;

  void append(std::string_view text, std::vector<int32_t>& ids) const;
  void append_normalized(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const;
  void append_pieces(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const;

  BpeTokenizerParts parts_;
  std::vector<std::string> tokens_;  // by id, as the decoder takes them; empty: no such token
  AddedTokenMatcher raw_tokens_;
  AddedTokenMatcher normalized_tokens_;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Scratch>> idle_;
};

}  // namespace narrowgauge::data

#pragma once

#include <array>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/mapped_file.h"
#include "data/token_storage.h"

namespace narrowgauge::data {

// Identifies what a cache was made from: a 128-bit hash, see prepare_tokens.
using CacheFingerprint = std::array<uint64_t, 2>;

// A memory-mapped stream of tokens on disk with the ends of its documents. The format stands at
// the top of token_cache.cc.
class TokenCache : public TokenStorage {
 public:
  // Throws std::runtime_error with the path when the file is truncated, damaged in its header or
  // its document table, or no token cache at all. Takes time in proportion to the documents, not
  // to the tokens: their checksum is verify_tokens' matter.
  explicit TokenCache(const std::string& path);

  int64_t num_tokens() const override;
  void read(int64_t begin, std::span<int64_t> out) const override;
  void read_ignored(int64_t begin, std::span<uint8_t> out) const override;
  std::span<const DocumentEnd> documents() const override { return documents_; }
  const std::string& name() const override { return file_.path(); }

  int token_bytes() const;      // 2 or 4
  int64_t vocab_size() const;   // of the tokenizer; every id is below it
  uint64_t text_bytes() const;  // of UTF-8 text that the tokens were made from
  CacheFingerprint fingerprint() const;

  // Reads every token. Throws std::runtime_error when one has changed since it was written.
  void verify_tokens() const;

 private:
  struct Header;
  friend class TokenCacheWriter;

  const Header& header() const;
  const std::byte* tokens() const;

  MappedFile file_;
  std::span<const DocumentEnd> documents_;
};

// Writes a cache beside its final place and moves it there when it is complete, so that no reader
// ever sees half of one. A writer that is destroyed before `finish` removes what it wrote.
// REQUIRES: one writer of a path at a time.
class TokenCacheWriter {
 public:
  // Ids take two bytes each when vocab_size admits it and has_ignored, that some tokens may be no
  // targets, does not hold. Throws std::runtime_error when the file cannot be created.
  TokenCacheWriter(std::string path, const CacheFingerprint& fingerprint, int64_t vocab_size,
                   bool has_ignored = false);
  ~TokenCacheWriter();
  TokenCacheWriter(const TokenCacheWriter&) = delete;
  TokenCacheWriter& operator=(const TokenCacheWriter&) = delete;

  // Appends to the current document. `text_bytes`: size of the text that the ids stand for.
  // Throws std::out_of_range for an id outside [0, vocab_size) and std::runtime_error when the
  // disk is full.
  // ignored: see TokenStorage::read_ignored; empty, or one for each id.
  void append(std::span<const int32_t> ids, uint64_t text_bytes,
              std::span<const uint8_t> ignored = {});
  // The next append begins another document. A document without tokens leaves no trace.
  void end_document();
  // Syncs and renames. REQUIRES: no document is open.
  void finish();

  int64_t num_tokens() const { return num_tokens_; }

 private:
  struct Hashes;

  void write(const void* bytes, size_t size);

  std::string path_;
  std::string temporary_path_;
  CacheFingerprint fingerprint_;
  int64_t vocab_size_;
  bool has_ignored_;
  int token_bytes_;
  std::FILE* file_ = nullptr;
  bool is_finished_ = false;
  std::unique_ptr<Hashes> hashes_;
  std::vector<char> narrow_;  // reused by append
  std::vector<DocumentEnd> documents_;
  int64_t num_tokens_ = 0;
  uint64_t text_bytes_ = 0;
};

}  // namespace narrowgauge::data

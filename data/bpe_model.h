#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "data/bpe_merge_table.h"
#include "data/bpe_piece_cache.h"

namespace narrowgauge::data {

// A vocabulary and its merges, as the files of Hugging Face and GPT-2 write them.
struct BpeSpec {
  std::vector<std::pair<std::string, int32_t>> vocab;
  std::vector<std::pair<std::string, std::string>> merges;  // by rank
  // Pieces are bytes and the vocabulary is written in the byte alphabet; else pieces are the
  // characters of the vocabulary.
  bool byte_level = true;
  bool ignore_merges = false;  // a piece that is a token is that token
  bool byte_fallback = false;  // a character without a token becomes its bytes' <0x..> tokens
  bool fuse_unk = false;       // a run of unknown symbols is one unk
  std::optional<std::string> unk_token;
};

// Working memory of BpeModel::encode: one per thread, for one model.
class BpeScratch {
 public:
  BpeScratch() : cache_(std::make_unique<BpePieceCache>()) {}

 private:
  friend class BpeModel;
  struct Symbol {
    int32_t id;
    int32_t previous;
    int32_t next;
  };
  struct Candidate {
    int32_t rank;
    int32_t position;
    int32_t merged_id;

    bool comes_after(const Candidate& other) const {
      return std::pair(rank, position) > std::pair(other.rank, other.position);
    }
  };
  std::unique_ptr<BpePieceCache> cache_;
  std::vector<int32_t> ids_;
  std::vector<BpeMerge> merges_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> queue_;
};

// Byte-pair encoding: a piece starts as its symbols (bytes or characters) and the adjacent pair of
// lowest rank, the leftmost of equals, merges until none is left. Immutable; threads may share it.
class BpeModel {
 public:
  // Throws std::runtime_error for a merge of, or into, what is not in the vocabulary, and for ids
  // out of range.
  explicit BpeModel(const BpeSpec& spec);

  // Appends the ids of one piece. Symbols that are not in the vocabulary become the unknown token,
  // or nothing where the spec has none.
  void encode(std::string_view piece, BpeScratch& scratch, std::vector<int32_t>& ids) const;

  // By the token as the file writes it.
  std::optional<int32_t> token_id(std::string_view token) const;
  // Ids without a token have an empty string. Size: 1 + the largest id.
  const std::vector<std::string>& tokens() const { return tokens_; }
  int64_t num_tokens() const { return static_cast<int64_t>(token_ids_.size()); }

 private:
  struct StringHash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return BpePieceCache::hash(text); }
  };
  using TokenMap = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;

  void add_vocab(const BpeSpec& spec);
  void add_merges(const BpeSpec& spec);
  void add_symbols(const BpeSpec& spec);

  void start_symbols(std::string_view piece, std::vector<int32_t>& ids) const;
  bool append_fallback_bytes(std::string_view character, std::vector<int32_t>& ids) const;
  void merge_short(BpeScratch& scratch) const;
  void merge_long(BpeScratch& scratch) const;
  void push_candidate(BpeScratch& scratch, int32_t position) const;

  std::vector<std::string> tokens_;
  TokenMap token_ids_;
  TokenMap words_;  // whole pieces, when merges are ignored for them
  BpeMergeTable merge_table_;
  std::vector<int32_t> byte_ids_;      // symbols of bytes, -1 where there is none
  std::vector<int32_t> fallback_ids_;  // the <0x..> tokens, -1 where there is none
  bool byte_level_;
  bool byte_fallback_;
  bool fuse_unk_;
  bool ignore_merges_;
  int32_t unk_id_ = -1;
};

}  // namespace narrowgauge::data

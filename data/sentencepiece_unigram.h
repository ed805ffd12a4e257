#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/bpe_merge_table.h"
#include "data/sentencepiece_model.h"

namespace narrowgauge::data {

// The search of unigram models: the segmentation of normalized text with the highest sum of piece
// scores. Debian's library (0.1.97) compares sums in double with sums stored in float, so that
// ties, which every "====" has, fall differently from release 0.2, the one that others use. This is
// release 0.2's arithmetic (src/unigram_model.cc, EncodeOptimized), bit for bit, its resets of the
// sum at 100,000 included. Immutable; threads may share it.
class SentencepieceUnigram {
 public:
  // `bytes`: of the file, a serialized ModelProto. Throws std::runtime_error when they
  // are none.
  explicit SentencepieceUnigram(std::string_view bytes);

  // False for BPE, word and character models, which have no such search.
  bool is_unigram() const { return is_unigram_; }

  struct Piece {
    int32_t id;
    std::string_view text;  // into the normalized text
  };
  // REQUIRES: is_unigram(); normalized is well-formed UTF-8.
  std::vector<Piece> encode(std::string_view normalized) const;

 private:
  struct Node {  // the best segmentation that ends here
    int32_t id = -1;
    float score = 0;
    int64_t begin = -1;  // of its last piece
  };

  void build_trie(const SentencepieceModel& model);
  float piece_score(int32_t id, size_t length) const;

  bool is_unigram_ = true;  // sentencepiece's default
  std::vector<float> scores_;
  std::vector<bool> user_defined_;
  int32_t unknown_id_ = 0;
  float unknown_score_ = 0;
  BpeMergeTable children_;                // (trie node, byte) -> node
  std::vector<int32_t> pieces_of_nodes_;  // -1: no piece ends at the node
};

}  // namespace narrowgauge::data

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace narrowgauge::data {

// What a sentencepiece file, a serialized ModelProto, says (sentencepiece_model.proto).
struct SentencepieceModel {
  enum class PieceType {
    kNormal = 1,
    kUnknown = 2,
    kControl = 3,
    kUserDefined = 4,
    kUnused = 5,
    kByte = 6
  };
  struct Piece {
    std::string_view text;  // into the bytes that were parsed
    float score = 0;
    PieceType type = PieceType::kNormal;
  };
  enum class Algorithm { kUnigram = 1, kBpe = 2, kWord = 3, kChar = 4 };

  std::vector<Piece> pieces;  // by id
  Algorithm algorithm = Algorithm::kUnigram;
  std::string normalizer;  // identity, nmt_nfkc, ...
  bool has_charsmap = false;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
};

// `bytes` must outlive the result. Throws std::runtime_error when they are no such model.
SentencepieceModel parse_sentencepiece_model(std::string_view bytes);

}  // namespace narrowgauge::data

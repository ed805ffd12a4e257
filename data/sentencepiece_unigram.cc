#include "data/sentencepiece_unigram.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "data/sentencepiece_model.h"
#include "data/unicode_text.h"

namespace narrowgauge::data {
namespace {

using PieceType = SentencepieceModel::PieceType;

constexpr float kUnknownPenalty = 10;
constexpr float kScoreResetThreshold = 100000;

}  // namespace

SentencepieceUnigram::SentencepieceUnigram(std::string_view bytes) {
  const SentencepieceModel model = parse_sentencepiece_model(bytes);
  is_unigram_ = model.algorithm == SentencepieceModel::Algorithm::kUnigram;
  if (is_unigram_) {
    build_trie(model);
  }
}

void SentencepieceUnigram::build_trie(const SentencepieceModel& model) {
  float lowest = std::numeric_limits<float>::max();
  size_t num_bytes = 0;
  for (const SentencepieceModel::Piece& piece : model.pieces) {
    num_bytes += piece.text.size();
  }
  children_.reserve(num_bytes);
  pieces_of_nodes_.assign(1, -1);
  for (const SentencepieceModel::Piece& piece : model.pieces) {
    const auto id = static_cast<int32_t>(scores_.size());
    scores_.push_back(piece.score);
    user_defined_.push_back(piece.type == PieceType::kUserDefined);
    if (piece.type == PieceType::kNormal) {
      lowest = std::min(lowest, piece.score);
    } else if (piece.type == PieceType::kUnknown) {
      unknown_id_ = id;
    }
    // Unused pieces are passed over by the search; the others of no text of their own.
    if ((piece.type != PieceType::kNormal && piece.type != PieceType::kUserDefined) ||
        piece.text.empty()) {
      continue;
    }
    int32_t node = 0;
    for (const char byte : piece.text) {
      const auto symbol = static_cast<unsigned char>(byte);
      BpeMerge child = children_.find(node, symbol);
      if (!child.exists()) {
        child = {0, static_cast<int32_t>(pieces_of_nodes_.size())};
        children_.insert(node, symbol, child);
        pieces_of_nodes_.push_back(-1);
      }
      node = child.id;
    }
    pieces_of_nodes_[static_cast<size_t>(node)] = id;
  }
  unknown_score_ = lowest - kUnknownPenalty;
}

float SentencepieceUnigram::piece_score(int32_t id, size_t length) const {
  const auto index = static_cast<size_t>(id);
  return user_defined_[index] ? static_cast<float>(0.1 * (static_cast<int>(length) - 1))
                              : scores_[index];
}

std::vector<SentencepieceUnigram::Piece> SentencepieceUnigram::encode(
    std::string_view normalized) const {
  std::vector<Node> best(normalized.size() + 1);
  size_t frontier = 0;
  const auto offer = [&](size_t begin, size_t end, int32_t id, float score) {
    frontier = std::max(frontier, end);
    if (best[end].begin < 0 || score > best[end].score) {
      best[end] = {id, score, static_cast<int64_t>(begin)};
    }
  };
  for (size_t begin = 0; begin < normalized.size();) {
    float score_here = best[begin].score;
    if (score_here < -kScoreResetThreshold || score_here > kScoreResetThreshold) {
      for (size_t i = begin; i <= frontier; ++i) {
        if (i == begin || best[i].begin >= 0) {
          best[i].score -= score_here;
        }
      }
      score_here = 0;
    }
    const size_t character = character_length(normalized.substr(begin));
    bool has_single_character = false;
    int32_t node = 0;
    for (size_t end = begin; end < normalized.size();) {
      node = children_.find(node, static_cast<unsigned char>(normalized[end])).id;
      if (node < 0) {
        break;
      }
      ++end;
      const int32_t id = pieces_of_nodes_[static_cast<size_t>(node)];
      if (id >= 0) {
        offer(begin, end, id, piece_score(id, end - begin) + score_here);
        has_single_character = has_single_character || end - begin == character;
      }
    }
    if (!has_single_character) {
      offer(begin, begin + character, unknown_id_, unknown_score_ + score_here);
    }
    begin += character;
  }
  std::vector<Piece> pieces;
  for (size_t end = normalized.size(); end > 0;) {
    const auto begin = static_cast<size_t>(best[end].begin);
    pieces.push_back({best[end].id, normalized.substr(begin, end - begin)});
    end = begin;
  }
  std::reverse(pieces.begin(), pieces.end());
  return pieces;
}

}  // namespace narrowgauge::data

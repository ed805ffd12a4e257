#include "data/sentencepiece_unigram.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "data/unicode_text.h"

namespace narrowgauge::data {
namespace {

// Fields of sentencepiece_model.proto.
constexpr uint64_t kModelPieces = 1, kModelTrainerSpec = 2;
constexpr uint64_t kPieceText = 1, kPieceScore = 2, kPieceType = 3;
constexpr uint64_t kTrainerModelType = 3;
constexpr uint64_t kUnigramModel = 1;

// Walks over the fields of a protobuf message.
class MessageReader {
 public:
  explicit MessageReader(std::string_view message) : rest_(message) {}

  // The next field; false at the end. `bytes` is set for lengths and fixed sizes, `number` for
  // varints.
  bool next() {
    if (rest_.empty()) {
      return false;
    }
    const uint64_t tag = varint();
    field = tag >> 3;
    switch (tag & 7) {
      case 0:
        number = varint();
        bytes = {};
        return true;
      case 1:
        bytes = take(8);
        return true;
      case 2:
        bytes = take(varint());
        return true;
      case 5:
        bytes = take(4);
        return true;
      default:
        throw std::runtime_error("expected a sentencepiece model, got an unknown wire type");
    }
  }

  uint64_t field = 0;
  uint64_t number = 0;
  std::string_view bytes;

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1).front());
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) {
        return value;
      }
    }
    throw std::runtime_error("expected a sentencepiece model, got a number of over 64 bits");
  }

  std::string_view take(uint64_t size) {
    if (size > rest_.size()) {
      throw std::runtime_error("expected a sentencepiece model, got a truncated one");
    }
    const std::string_view taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }

  std::string_view rest_;
};

constexpr float kUnknownPenalty = 10;
constexpr float kScoreResetThreshold = 100000;

}  // namespace

SentencepieceUnigram::Entry SentencepieceUnigram::parse_piece(std::string_view message) {
  Entry entry;
  for (MessageReader reader(message); reader.next();) {
    if (reader.field == kPieceText) {
      entry.text = reader.bytes;
    } else if (reader.field == kPieceScore && reader.bytes.size() == sizeof(float)) {
      std::memcpy(&entry.score, reader.bytes.data(), sizeof(float));
    } else if (reader.field == kPieceType) {
      entry.type = static_cast<Type>(reader.number);
    }
  }
  return entry;
}

SentencepieceUnigram::SentencepieceUnigram(std::string_view model) {
  std::vector<Entry> entries;
  for (MessageReader reader(model); reader.next();) {
    if (reader.field == kModelPieces) {
      entries.push_back(parse_piece(reader.bytes));
    } else if (reader.field == kModelTrainerSpec) {
      for (MessageReader trainer(reader.bytes); trainer.next();) {
        if (trainer.field == kTrainerModelType) {
          is_unigram_ = trainer.number == kUnigramModel;
        }
      }
    }
  }
  if (is_unigram_) {
    build_trie(entries);
  }
}

void SentencepieceUnigram::build_trie(const std::vector<Entry>& entries) {
  float lowest = std::numeric_limits<float>::max();
  size_t num_bytes = 0;
  for (const Entry& entry : entries) {
    num_bytes += entry.text.size();
  }
  children_.reserve(num_bytes);
  pieces_of_nodes_.assign(1, -1);
  for (const Entry& entry : entries) {
    const auto id = static_cast<int32_t>(scores_.size());
    scores_.push_back(entry.score);
    user_defined_.push_back(entry.type == Type::kUserDefined);
    if (entry.type == Type::kNormal) {
      lowest = std::min(lowest, entry.score);
    } else if (entry.type == Type::kUnknown) {
      unknown_id_ = id;
    }
    // Unused pieces are passed over by the search; the others of no text of their own.
    if ((entry.type != Type::kNormal && entry.type != Type::kUserDefined) || entry.text.empty()) {
      continue;
    }
    int32_t node = 0;
    for (const char byte : entry.text) {
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

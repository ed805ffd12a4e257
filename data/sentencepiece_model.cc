#include "data/sentencepiece_model.h"

#include <cstring>
#include <stdexcept>

namespace narrowgauge::data {
namespace {

// Fields of sentencepiece_model.proto.
constexpr uint64_t kModelPieces = 1, kModelTrainerSpec = 2, kModelNormalizerSpec = 3;
constexpr uint64_t kPieceText = 1, kPieceScore = 2, kPieceType = 3;
constexpr uint64_t kTrainerModelType = 3;
constexpr uint64_t kNormalizerName = 1, kNormalizerCharsmap = 2, kNormalizerDummyPrefix = 3,
                   kNormalizerExtraWhitespaces = 4;

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

SentencepieceModel::Piece parse_piece(std::string_view message) {
  SentencepieceModel::Piece piece;
  for (MessageReader reader(message); reader.next();) {
    if (reader.field == kPieceText) {
      piece.text = reader.bytes;
    } else if (reader.field == kPieceScore && reader.bytes.size() == sizeof(float)) {
      std::memcpy(&piece.score, reader.bytes.data(), sizeof(float));
    } else if (reader.field == kPieceType) {
      piece.type = static_cast<SentencepieceModel::PieceType>(reader.number);
    }
  }
  return piece;
}

void parse_normalizer(std::string_view message, SentencepieceModel& model) {
  for (MessageReader reader(message); reader.next();) {
    if (reader.field == kNormalizerName) {
      model.normalizer = std::string(reader.bytes);
    } else if (reader.field == kNormalizerCharsmap) {
      model.has_charsmap = !reader.bytes.empty();
    } else if (reader.field == kNormalizerDummyPrefix) {
      model.add_dummy_prefix = reader.number != 0;
    } else if (reader.field == kNormalizerExtraWhitespaces) {
      model.remove_extra_whitespaces = reader.number != 0;
    }
  }
}

}  // namespace

SentencepieceModel parse_sentencepiece_model(std::string_view bytes) {
  SentencepieceModel model;
  for (MessageReader reader(bytes); reader.next();) {
    if (reader.field == kModelPieces) {
      model.pieces.push_back(parse_piece(reader.bytes));
    } else if (reader.field == kModelTrainerSpec) {
      for (MessageReader trainer(reader.bytes); trainer.next();) {
        if (trainer.field == kTrainerModelType) {
          model.algorithm = static_cast<SentencepieceModel::Algorithm>(trainer.number);
        }
      }
    } else if (reader.field == kModelNormalizerSpec) {
      parse_normalizer(reader.bytes, model);
    }
  }
  return model;
}

}  // namespace narrowgauge::data

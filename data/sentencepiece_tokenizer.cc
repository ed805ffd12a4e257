#include "data/sentencepiece_tokenizer.h"

#include <sentencepiece_processor.h>

#include <array>
#include <filesystem>
#include <stdexcept>

#include "data/sentencepiece_unigram.h"
#include "data/tokenizer_files.h"
#include "data/unicode_text.h"

namespace narrowgauge::data {
namespace {

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(std::string path, const std::string& model)
      : path_(std::move(path)), unigram_(model) {
    const auto status = processor_.LoadFromSerializedProto(model);
    if (!status.ok()) {
      throw std::runtime_error("expected a sentencepiece model, got " + status.ToString());
    }
    for (int32_t id = 0; id < processor_.GetPieceSize(); ++id) {
      if (processor_.IsByte(id)) {
        // <0x0A>
        byte_ids_[std::stoul(processor_.IdToPiece(id).substr(3, 2), nullptr, 16)] = id;
        has_byte_fallback_ = true;
      }
    }
    fingerprint_ = tokenizer_fingerprint("sentencepiece", {&model, 1});
  }

  std::vector<int32_t> encode(std::string_view text) const override {
    require_utf8(text);
    if (unigram_.is_unigram()) {
      return encode_unigram(normalize(text));
    }
    std::vector<int32_t> ids;
    const auto status = processor_.Encode({text.data(), text.size()}, &ids);
    if (!status.ok()) {
      throw std::runtime_error("expected sentencepiece to encode the text, got " +
                               status.ToString());
    }
    return ids;
  }

  std::string decode(std::span<const int32_t> ids) const override {
    std::vector<int32_t> known;
    known.reserve(ids.size());
    for (const int32_t id : ids) {
      if (id >= 0 && id < processor_.GetPieceSize()) {
        known.push_back(id);
      }
    }
    std::string text;
    const auto status = processor_.Decode(known, &text);
    if (!status.ok()) {
      throw std::runtime_error("expected sentencepiece to decode the ids, got " +
                               status.ToString());
    }
    return text;
  }

  std::vector<int32_t> encode_document(std::string_view text) const override {
    std::vector<int32_t> ids = encode(text);
    if (const auto bos = bos_id()) {
      ids.insert(ids.begin(), *bos);
    }
    return ids;
  }

  int64_t vocab_size() const override { return processor_.GetPieceSize(); }
  std::optional<int32_t> bos_id() const override { return present(processor_.bos_id()); }
  std::optional<int32_t> eos_id() const override { return present(processor_.eos_id()); }
  std::vector<TokenizerFile> exported_files() const override {
    return {{path_, "tokenizer.model"}};
  }
  std::string fingerprint() const override { return fingerprint_; }

 private:
  // The library does not offer its normalizer, but its pieces put together are what it made.
  std::string normalize(std::string_view text) const {
    std::vector<std::string> pieces;
    const auto status = processor_.Encode({text.data(), text.size()}, &pieces);
    if (!status.ok()) {
      throw std::runtime_error("expected sentencepiece to encode the text, got " +
                               status.ToString());
    }
    std::string normalized;
    for (const std::string& piece : pieces) {
      if (has_byte_fallback_ && processor_.IsByte(processor_.PieceToId(piece))) {
        normalized += static_cast<char>(std::stoul(piece.substr(3, 2), nullptr, 16));
      } else {
        normalized += piece;
      }
    }
    return normalized;
  }

  std::vector<int32_t> encode_unigram(const std::string& normalized) const {
    std::vector<int32_t> ids;
    bool after_unknown = false;
    for (const auto& [id, text] : unigram_.encode(normalized)) {
      const bool is_unknown = processor_.IsUnknown(id);
      if (is_unknown && has_byte_fallback_) {
        for (const char byte : text) {
          ids.push_back(byte_ids_[static_cast<unsigned char>(byte)]);
        }
      } else if (!(is_unknown && after_unknown)) {  // a run of unknown characters is one
        ids.push_back(id);
      }
      after_unknown = is_unknown;
    }
    return ids;
  }

  static std::optional<int32_t> present(int id) {
    return id >= 0 ? std::optional<int32_t>(id) : std::nullopt;
  }

  std::string path_;
  std::string fingerprint_;
  SentencepieceUnigram unigram_;
  bool has_byte_fallback_ = false;
  std::array<int32_t, 256> byte_ids_{};
  sentencepiece::SentencePieceProcessor processor_;
};

}  // namespace

std::unique_ptr<Tokenizer> load_sentencepiece_tokenizer(const std::string& path) {
  namespace fs = std::filesystem;
  const fs::path file =
      fs::is_directory(path) ? fs::path(path) / "tokenizer.model" : fs::path(path);
  const std::string model = read_tokenizer_file(file.string());
  try {
    return std::make_unique<SentencePieceTokenizer>(file.string(), model);
  } catch (const std::exception& error) {
    throw std::runtime_error(file.string() + ": " + error.what());
  }
}

}  // namespace narrowgauge::data

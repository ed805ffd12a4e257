#include "data/sentencepiece_tokenizer.h"

#include <sentencepiece_processor.h>

#include <filesystem>
#include <stdexcept>

#include "data/tokenizer_files.h"
#include "data/unicode_text.h"

namespace narrowgauge::data {
namespace {

class SentencePieceTokenizer : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(std::string path) : path_(std::move(path)) {
    const std::string model = read_tokenizer_file(path_);
    const auto status = processor_.LoadFromSerializedProto(model);
    if (!status.ok()) {
      throw std::runtime_error(path_ + ": expected a sentencepiece model, got " +
                               status.ToString());
    }
    fingerprint_ = tokenizer_fingerprint("sentencepiece", {&model, 1});
  }

  std::vector<int32_t> encode(std::string_view text) const override {
    require_utf8(text);
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
  static std::optional<int32_t> present(int id) {
    return id >= 0 ? std::optional<int32_t>(id) : std::nullopt;
  }

  std::string path_;
  std::string fingerprint_;
  sentencepiece::SentencePieceProcessor processor_;
};

}  // namespace

std::unique_ptr<Tokenizer> load_sentencepiece_tokenizer(const std::string& path) {
  namespace fs = std::filesystem;
  const fs::path file =
      fs::is_directory(path) ? fs::path(path) / "tokenizer.model" : fs::path(path);
  return std::make_unique<SentencePieceTokenizer>(file.string());
}

}  // namespace narrowgauge::data

#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace narrowgauge::data {

// Ids are byte values plus `shift`, below which special tokens have room. Small enough to foresee
// every id, with a token that ends documents, and not the byte tokenizer that sources know.
class ShiftedByteTokenizer : public Tokenizer {
 public:
  explicit ShiftedByteTokenizer(int32_t shift = 1, std::optional<int32_t> eos = 0,
                                bool template_ends_documents = false)
      : shift_(shift), eos_(eos), template_ends_documents_(template_ends_documents) {}

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c) + shift_);
    return ids;
  }
  std::vector<int32_t> encode_document(std::string_view text) const override {
    auto ids = encode(text);
    if (template_ends_documents_) ids.push_back(*eos_);
    return ids;
  }
  std::string decode(std::span<const int32_t> ids) const override {
    std::string text;
    for (const int32_t id : ids) {
      if (id >= shift_) text.push_back(static_cast<char>(id - shift_));
    }
    return text;
  }
  int64_t vocab_size() const override { return 256 + shift_; }
  std::optional<int32_t> eos_id() const override { return eos_; }
  std::string fingerprint() const override { return "shifted " + std::to_string(shift_); }

 private:
  int32_t shift_;
  std::optional<int32_t> eos_;
  bool template_ends_documents_;
};

}  // namespace narrowgauge::data

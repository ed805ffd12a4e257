#include "data/bpe_tokenizer.h"

#include <algorithm>
#include <utility>

#include "data/unicode_text.h"

namespace narrowgauge::data {

class BpeTokenizer::Lease {
 public:
  explicit Lease(const BpeTokenizer& tokenizer) : tokenizer_(tokenizer) {
    const std::lock_guard lock(tokenizer.mutex_);
    if (!tokenizer.idle_.empty()) {
      scratch_ = std::move(tokenizer.idle_.back());
      tokenizer.idle_.pop_back();
    }
    if (!scratch_) {
      scratch_ = std::make_unique<Scratch>();
    }
  }
  ~Lease() {
    const std::lock_guard lock(tokenizer_.mutex_);
    tokenizer_.idle_.push_back(std::move(scratch_));
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  Scratch& operator*() { return *scratch_; }

 private:
  const BpeTokenizer& tokenizer_;
  std::unique_ptr<Scratch> scratch_;
};

BpeTokenizer::BpeTokenizer(BpeTokenizerParts parts)
    : parts_(std::move(parts)), tokens_(parts_.model.tokens()) {
  std::vector<AddedToken> raw, normalized;
  std::vector<std::string> raw_patterns, normalized_patterns;
  RegexScratch scratch;
  for (const AddedToken& token : parts_.added_tokens) {
    const auto id = static_cast<size_t>(token.id);
    tokens_.resize(std::max(tokens_.size(), id + 1));
    // A token that is sought in normalized text also decodes to its normalized self.
    std::string pattern =
        token.normalized ? parts_.normalizer.normalize(token.content, scratch) : token.content;
    tokens_[id] = pattern;
    (token.normalized ? normalized : raw).push_back(token);
    (token.normalized ? normalized_patterns : raw_patterns).push_back(std::move(pattern));
  }
  raw_tokens_ = AddedTokenMatcher(std::move(raw), raw_patterns);
  normalized_tokens_ = AddedTokenMatcher(std::move(normalized), normalized_patterns);
}

std::vector<int32_t> BpeTokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  append(text, ids);
  return ids;
}

std::vector<int32_t> BpeTokenizer::encode_document(std::string_view text) const {
  std::vector<int32_t> ids = parts_.document_prefix;
  append(text, ids);
  ids.insert(ids.end(), parts_.document_suffix.begin(), parts_.document_suffix.end());
  return ids;
}

void BpeTokenizer::append(std::string_view text, std::vector<int32_t>& ids) const {
  require_utf8(text);
  Lease scratch(*this);
  ids.reserve(ids.size() + text.size() / 3 + 4);
  raw_tokens_.split(
      text, [&](std::string_view part) { append_normalized(part, *scratch, ids); },
      [&](int32_t id) { ids.push_back(id); });
}

void BpeTokenizer::append_normalized(std::string_view text, Scratch& scratch,
                                     std::vector<int32_t>& ids) const {
  std::string normalized;
  if (!parts_.normalizer.empty()) {
    normalized = parts_.normalizer.normalize(text, scratch.regex);
    text = normalized;
  }
  normalized_tokens_.split(
      text, [&](std::string_view part) { append_pieces(part, scratch, ids); },
      [&](int32_t id) { ids.push_back(id); });
}

void BpeTokenizer::append_pieces(std::string_view text, Scratch& scratch,
                                 std::vector<int32_t>& ids) const {
  parts_.pre_tokenizer.for_each_piece(text, scratch.regex, [&](std::string_view piece) {
    parts_.model.encode(piece, scratch.bpe, ids);
  });
}

std::string BpeTokenizer::decode(std::span<const int32_t> ids) const {
  std::vector<std::string> tokens;
  tokens.reserve(ids.size());
  for (const int32_t id : ids) {
    const bool known = id >= 0 && static_cast<size_t>(id) < tokens_.size();
    if (known && !tokens_[static_cast<size_t>(id)].empty()) {
      tokens.push_back(tokens_[static_cast<size_t>(id)]);
    }
  }
  return parts_.decoder.decode(std::move(tokens));
}

}  // namespace narrowgauge::data

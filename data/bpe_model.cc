#include "data/bpe_model.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <stdexcept>

#include "data/bpe_byte_alphabet.h"
#include "data/unicode_text.h"

namespace narrowgauge::data {
namespace {

// Tables are indexed by id, so that a lying file must not choose their size.
constexpr int64_t kMaxTokens = int64_t{1} << 24;

// Above this many symbols the quadratic scan loses to the queue.
constexpr size_t kShortPiece = 64;

}  // namespace

BpeModel::BpeModel(const BpeSpec& spec)
    : byte_level_(spec.byte_level),
      byte_fallback_(spec.byte_fallback),
      fuse_unk_(spec.fuse_unk),
      ignore_merges_(spec.ignore_merges) {
  add_vocab(spec);
  add_merges(spec);
  add_symbols(spec);
  if (spec.unk_token) {
    const auto id = token_id(*spec.unk_token);
    if (!id) {
      throw std::runtime_error("expected the unknown token '" + *spec.unk_token +
                               "' in the vocabulary, got a vocabulary without it");
    }
    unk_id_ = *id;
  }
}

void BpeModel::add_vocab(const BpeSpec& spec) {
  token_ids_.reserve(spec.vocab.size());
  for (const auto& [token, id] : spec.vocab) {
    if (id < 0 || id >= kMaxTokens) {
      throw std::runtime_error("expected token ids from 0 to " + std::to_string(kMaxTokens - 1) +
                               ", got " + std::to_string(id) + " for '" + token + "'");
    }
    token_ids_.insert_or_assign(token, id);
    if (static_cast<size_t>(id) >= tokens_.size()) {
      tokens_.resize(static_cast<size_t>(id) + 1);
    }
    tokens_[static_cast<size_t>(id)] = token;
  }
  if (!ignore_merges_) {
    return;
  }
  for (const auto& [token, id] : spec.vocab) {
    if (!byte_level_) {
      words_.insert_or_assign(token, id);
    } else if (auto bytes = from_byte_alphabet(token)) {
      words_.insert_or_assign(std::move(*bytes), id);
    }
  }
}

void BpeModel::add_merges(const BpeSpec& spec) {
  merge_table_.reserve(spec.merges.size());
  const auto require = [&](const std::string& token, size_t rank) {
    const auto id = token_id(token);
    if (!id) {
      throw std::runtime_error("expected every merge's tokens in the vocabulary, got merge " +
                               std::to_string(rank) + " with '" + token + "', which is not there");
    }
    return *id;
  };
  for (size_t rank = 0; rank < spec.merges.size(); ++rank) {
    const auto& [left, right] = spec.merges[rank];
    const int32_t merged = require(left + right, rank);
    merge_table_.insert(require(left, rank), require(right, rank),
                        {static_cast<int32_t>(rank), merged});
  }
}

void BpeModel::add_symbols(const BpeSpec& spec) {
  byte_ids_.assign(256, -1);
  fallback_ids_.assign(256, -1);
  bool complete = true;
  for (int byte = 0; byte < 256; ++byte) {
    const auto index = static_cast<size_t>(byte);
    byte_ids_[index] =
        token_id(to_byte_alphabet(std::string(1, static_cast<char>(byte)))).value_or(-1);
    complete = complete && byte_ids_[index] >= 0;
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", byte);
    fallback_ids_[index] = token_id(name).value_or(-1);
  }
  if (spec.byte_level && spec.byte_fallback && !complete) {
    throw std::runtime_error(
        "expected byte_fallback with a model of characters, got it with a byte-level one that "
        "lacks tokens for some bytes; set byte_fallback to false");
  }
}

std::optional<int32_t> BpeModel::token_id(std::string_view token) const {
  const auto found = token_ids_.find(token);
  return found == token_ids_.end() ? std::nullopt : std::optional<int32_t>(found->second);
}

void BpeModel::encode(std::string_view piece, BpeScratch& scratch,
                      std::vector<int32_t>& ids) const {
  const bool cached = piece.size() <= BpePieceCache::kMaxBytes;
  const uint64_t hash = cached ? BpePieceCache::hash(piece) : 0;
  if (cached) {
    const auto known = scratch.cache_->find(piece, hash);
    if (!known.empty()) {
      ids.insert(ids.end(), known.begin(), known.end());
      return;
    }
  }
  scratch.ids_.clear();
  const auto word = ignore_merges_ ? words_.find(piece) : words_.end();
  if (word != words_.end()) {
    scratch.ids_.push_back(word->second);
  } else {
    start_symbols(piece, scratch.ids_);
    if (scratch.ids_.size() <= kShortPiece) {
      merge_short(scratch);
    } else {
      merge_long(scratch);
    }
  }
  if (cached) {
    scratch.cache_->insert(piece, hash, scratch.ids_);
  }
  ids.insert(ids.end(), scratch.ids_.begin(), scratch.ids_.end());
}

void BpeModel::start_symbols(std::string_view piece, std::vector<int32_t>& ids) const {
  bool after_unk = false;
  while (!piece.empty()) {
    const size_t length = byte_level_ ? 1 : character_length(piece);
    const std::string_view symbol = piece.substr(0, length);
    piece.remove_prefix(length);
    const int32_t id = byte_level_ ? byte_ids_[static_cast<unsigned char>(symbol.front())]
                                   : token_id(symbol).value_or(-1);
    if (id >= 0) {
      ids.push_back(id);
      after_unk = false;
    } else if (byte_fallback_ && append_fallback_bytes(symbol, ids)) {
      // The reference does not end a run of unknown symbols here.
    } else if (unk_id_ >= 0) {
      if (!(fuse_unk_ && after_unk)) {
        ids.push_back(unk_id_);
      }
      after_unk = true;
    }
  }
}

bool BpeModel::append_fallback_bytes(std::string_view character, std::vector<int32_t>& ids) const {
  const size_t size_before = ids.size();
  for (const char byte : character) {
    const int32_t id = fallback_ids_[static_cast<unsigned char>(byte)];
    if (id < 0) {
      ids.resize(size_before);
      return false;
    }
    ids.push_back(id);
  }
  return true;
}

// Keeps the merge of each adjacent pair and looks for the lowest by scanning: few symbols, all in
// one or two cache lines.
void BpeModel::merge_short(BpeScratch& scratch) const {
  std::vector<int32_t>& ids = scratch.ids_;
  std::vector<BpeMerge>& merges = scratch.merges_;  // merges[i] joins ids[i] and ids[i + 1]
  merges.clear();
  for (size_t i = 0; i + 1 < ids.size(); ++i) {
    merges.push_back(merge_table_.find(ids[i], ids[i + 1]));
  }
  while (!merges.empty()) {
    const auto best = std::min_element(
        merges.begin(), merges.end(),
        [](const BpeMerge& left, const BpeMerge& right) { return left.rank < right.rank; });
    if (!best->exists()) {
      return;
    }
    const auto i = static_cast<size_t>(best - merges.begin());
    ids[i] = best->id;
    ids.erase(ids.begin() + static_cast<ptrdiff_t>(i) + 1);
    merges.erase(best);
    if (i < merges.size()) {
      merges[i] = merge_table_.find(ids[i], ids[i + 1]);
    }
    if (i > 0) {
      merges[i - 1] = merge_table_.find(ids[i - 1], ids[i]);
    }
  }
}

void BpeModel::push_candidate(BpeScratch& scratch, int32_t position) const {
  const auto& symbol = scratch.symbols_[static_cast<size_t>(position)];
  if (symbol.next < 0) {
    return;
  }
  const BpeMerge merge =
      merge_table_.find(symbol.id, scratch.symbols_[static_cast<size_t>(symbol.next)].id);
  if (merge.exists()) {
    scratch.queue_.push_back({merge.rank, position, merge.id});
    std::push_heap(scratch.queue_.begin(), scratch.queue_.end(),
                   std::mem_fn(&BpeScratch::Candidate::comes_after));
  }
}

// A linked list of symbols and a queue of candidate merges: n log n for long pieces. A candidate is
// stale when its pair has changed, which shows because symbols only grow.
void BpeModel::merge_long(BpeScratch& scratch) const {
  constexpr int32_t kGone = -1;
  auto& symbols = scratch.symbols_;
  symbols.clear();
  scratch.queue_.clear();
  const auto count = static_cast<int32_t>(scratch.ids_.size());
  for (int32_t i = 0; i < count; ++i) {
    symbols.push_back({scratch.ids_[static_cast<size_t>(i)], i - 1, i + 1 < count ? i + 1 : -1});
  }
  for (int32_t i = 0; i < count; ++i) {
    push_candidate(scratch, i);
  }
  while (!scratch.queue_.empty()) {
    const BpeScratch::Candidate top = scratch.queue_.front();
    std::pop_heap(scratch.queue_.begin(), scratch.queue_.end(),
                  std::mem_fn(&BpeScratch::Candidate::comes_after));
    scratch.queue_.pop_back();
    auto& symbol = symbols[static_cast<size_t>(top.position)];
    if (symbol.id == kGone || symbol.next < 0) {
      continue;
    }
    auto& right = symbols[static_cast<size_t>(symbol.next)];
    const BpeMerge merge = merge_table_.find(symbol.id, right.id);
    if (!merge.exists() || merge.id != top.merged_id) {
      continue;
    }
    symbol.id = merge.id;
    symbol.next = right.next;
    right.id = kGone;
    if (symbol.next >= 0) {
      symbols[static_cast<size_t>(symbol.next)].previous = top.position;
    }
    push_candidate(scratch, top.position);
    if (symbol.previous >= 0) {
      push_candidate(scratch, symbol.previous);
    }
  }
  scratch.ids_.clear();
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    scratch.ids_.push_back(symbols[static_cast<size_t>(i)].id);
  }
}

}  // namespace narrowgauge::data

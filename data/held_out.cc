#include "data/held_out.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "data/mix64.h"

namespace narrowgauge::data {
namespace {

using Storages = std::vector<std::shared_ptr<const TokenStorage>>;

// Separates the draw from every other use of the hashes.
constexpr uint64_t kDrawKey = 0x686F6C64206F7574;

struct Candidate {
  uint64_t draw = 0;
  size_t ordinal = 0;  // among the documents of all storages
  int64_t size = 0;
};

void append(std::vector<TokenRange>& ranges, TokenRange range) {
  if (range.begin == range.end) return;
  if (!ranges.empty() && ranges.back().storage == range.storage &&
      ranges.back().end == range.begin) {
    ranges.back().end = range.end;
  } else {
    ranges.push_back(std::move(range));
  }
}

// Calls visit(storage, begin, end, content_hash) for each document.
template <typename Visit>
void for_each_document(const Storages& storages, Visit visit) {
  for (const auto& storage : storages) {
    int64_t begin = 0;
    for (const auto& document : storage->documents()) {
      const auto end = static_cast<int64_t>(document.end);
      visit(storage, begin, end, document.content_hash);
      begin = end;
    }
  }
}

// Which documents are held out, by ordinal.
std::vector<bool> draw_documents(const Storages& storages, double target) {
  std::vector<Candidate> candidates;
  for_each_document(storages, [&](const auto&, int64_t begin, int64_t end, uint64_t content_hash) {
    candidates.push_back({mix64(kDrawKey, content_hash), candidates.size(), end - begin});
  });
  std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
    return std::pair(a.draw, a.ordinal) < std::pair(b.draw, b.ordinal);
  });

  std::vector<bool> is_held_out(candidates.size());
  double taken = 0;
  for (size_t begin = 0, end = 0; begin < candidates.size() && taken < target; begin = end) {
    double size = 0;  // of all documents with this content
    for (end = begin; end < candidates.size() && candidates[end].draw == candidates[begin].draw;
         ++end) {
      size += static_cast<double>(candidates[end].size);
    }
    // A text that would lead further beyond the target than it is away now stays in training.
    if (size >= 2 * (target - taken)) continue;
    taken += size;
    for (size_t i = begin; i < end; ++i) is_held_out[candidates[i].ordinal] = true;
  }
  return is_held_out;
}

HeldOut split_by_document(const Storages& storages, double target) {
  const std::vector<bool> is_held_out = draw_documents(storages, target);
  HeldOut split;
  size_t ordinal = 0;
  for_each_document(storages, [&](const auto& storage, int64_t begin, int64_t end, uint64_t) {
    append(is_held_out[ordinal++] ? split.validation : split.train, {storage, begin, end});
  });
  return split;
}

HeldOut split_at(const Storages& storages, int64_t cut) {
  HeldOut split;
  int64_t start = 0;  // of the storage in the whole stream
  for (const auto& storage : storages) {
    const int64_t size = storage->num_tokens();
    const int64_t middle = std::clamp<int64_t>(cut - start, 0, size);
    append(split.train, {storage, 0, middle});
    append(split.validation, {storage, middle, size});
    start += size;
  }
  return split;
}

}  // namespace

HeldOut hold_out(const Storages& storages, double fraction) {
  if (!(fraction >= 0 && fraction < 1)) {
    throw std::invalid_argument("expected validation_fraction in [0, 1), got " +
                                std::to_string(fraction));
  }
  int64_t num_tokens = 0;
  size_t num_documents = 0;
  for (const auto& storage : storages) {
    num_tokens += storage->num_tokens();
    num_documents += storage->documents().size();
  }
  if (fraction == 0) return split_at(storages, num_tokens);
  const auto size = static_cast<double>(num_tokens);
  if (fraction * static_cast<double>(num_documents) >= 1) {
    HeldOut split = split_by_document(storages, fraction * size);
    // Nothing fits when most documents are copies of one: then the tail is the better choice.
    if (!split.validation.empty() && !split.train.empty()) return split;
  }
  return split_at(storages, static_cast<int64_t>(size * (1 - fraction)));
}

}  // namespace narrowgauge::data

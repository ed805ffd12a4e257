#include "data/document_packing.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>

#include "data/mix64.h"
#include "data/window_order.h"

namespace narrowgauge::data {
namespace {

// The window of each piece. REQUIRES: pieces are sorted, longest first.
std::vector<int64_t> fit(std::span<const WindowPiece> pieces, int64_t seq_len) {
  std::map<int64_t, std::vector<int64_t>> windows_by_room;
  std::vector<int64_t> window_of;
  int64_t num_windows = 0;
  for (const WindowPiece& piece : pieces) {
    const auto tightest = windows_by_room.lower_bound(piece.num_targets);
    const bool is_new = tightest == windows_by_room.end();
    const int64_t room = is_new ? seq_len : tightest->first;
    const int64_t window = is_new ? num_windows++ : tightest->second.back();
    if (!is_new) {
      tightest->second.pop_back();
      if (tightest->second.empty()) windows_by_room.erase(tightest);
    }
    window_of.push_back(window);
    if (room > piece.num_targets) windows_by_room[room - piece.num_targets].push_back(window);
  }
  return window_of;
}

}  // namespace

DocumentPacking::DocumentPacking(const TokenDataset& dataset, int64_t seq_len, uint64_t seed,
                                 bool shuffle)
    : seed_(seed), shuffle_(shuffle) {
  std::vector<WindowPiece> pieces;
  int64_t begin = 0;
  for (const int64_t end : dataset.document_ends()) {
    for (; begin + 1 < end && seq_len > 0; begin += pieces.back().num_targets) {
      pieces.push_back({begin, std::min(end - begin - 1, seq_len)});
    }
    begin = end;
  }
  if (pieces.empty()) {
    throw std::invalid_argument("expected documents of at least two tokens to pack, got none in " +
                                std::to_string(dataset.num_tokens()) + " tokens");
  }
  std::stable_sort(pieces.begin(), pieces.end(), [](const WindowPiece& a, const WindowPiece& b) {
    return a.num_targets > b.num_targets;
  });
  const std::vector<int64_t> window_of = fit(pieces, seq_len);
  window_begins_.assign(*std::max_element(window_of.begin(), window_of.end()) + 2, 0);
  for (const int64_t window : window_of) ++window_begins_[window + 1];
  for (size_t i = 1; i < window_begins_.size(); ++i) window_begins_[i] += window_begins_[i - 1];
  std::vector<int64_t> next(window_begins_.begin(), window_begins_.end() - 1);
  pieces_.resize(pieces.size());
  for (size_t i = 0; i < pieces.size(); ++i) {
    pieces_[next[window_of[i]]++] = pieces[i];
    num_targets_ += pieces[i].num_targets;
  }
}

std::span<const WindowPiece> DocumentPacking::window(int64_t sample) const {
  int64_t index = sample % windows_per_epoch();
  if (shuffle_) {
    const uint64_t key = mix64(seed_, static_cast<uint64_t>(sample / windows_per_epoch()));
    const Permutation order(static_cast<uint64_t>(windows_per_epoch()), mix64(key, 1));
    index = static_cast<int64_t>(order(static_cast<uint64_t>(index)));
  }
  return std::span(pieces_).subspan(window_begins_[index],
                                    window_begins_[index + 1] - window_begins_[index]);
}

}  // namespace narrowgauge::data

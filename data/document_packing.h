#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/token_dataset.h"

namespace narrowgauge::data {

// Tokens [begin, begin + num_targets] of a stream: num_targets inputs, each with the next one as
// its target.
struct WindowPiece {
  int64_t begin = 0;
  int64_t num_targets = 0;
};

// Whole documents fitted into windows of seq_len targets, best fit in the order of decreasing
// length (Johnson 1974; at most 11/9 of the fewest windows there can be). A document of n tokens
// takes n - 1 places; one with more than seq_len is split into pieces of seq_len, which do not see
// each other, and the rest. Which documents share a window depends on the data alone, the order of
// the windows, another one each epoch, on the seed. 24 bytes of memory a document. Immutable.
class DocumentPacking {
 public:
  // Throws std::invalid_argument when no document has two tokens.
  DocumentPacking(const TokenDataset& dataset, int64_t seq_len, uint64_t seed, bool shuffle);

  int64_t windows_per_epoch() const { return static_cast<int64_t>(window_begins_.size()) - 1; }

  // REQUIRES: sample >= 0.
  std::span<const WindowPiece> window(int64_t sample) const;

  int64_t num_targets() const { return num_targets_; }  // of an epoch; the other places are padding

 private:
  uint64_t seed_;
  bool shuffle_;
  std::vector<WindowPiece> pieces_;     // window by window
  std::vector<int64_t> window_begins_;  // of each window in pieces_, then their number
  int64_t num_targets_ = 0;
};

}  // namespace narrowgauge::data

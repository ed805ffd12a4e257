#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

namespace narrowgauge::trainer {

// A text to score: its tokens, the first of which is context only, and how much text the others
// stand for.
struct ScoredDocument {
  std::vector<int64_t> tokens;
  int64_t num_bytes = 0;  // 0 for data that are token ids
  int64_t num_words = 0;  // separated by white space
};

// Predicts tokens[1..] from those before them; at most seq_len + 1 tokens.
using Window = std::span<const int64_t>;

// Windows of seq_len predictions that do not overlap, longest first, so that windows of one length
// run together without padding. They look into `documents`.
std::vector<Window> cut_windows(const std::vector<ScoredDocument>& documents, int64_t seq_len);

// Windows as the model takes them, on the CPU: inputs padded with token 0, targets with
// nn::kIgnoredTarget, to the length of the first window. REQUIRES: that one is the longest.
struct WindowBatch {
  at::Tensor inputs;   // [windows, length] int64
  at::Tensor targets;  // the same
};
WindowBatch batch_of(std::span<const Window> windows);

}  // namespace narrowgauge::trainer

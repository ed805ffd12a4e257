#pragma once

#include <array>
#include <cstdint>

namespace narrowgauge::data {

// A pseudo-random bijection of [0, size), computed element by element: a Feistel network over the
// smallest power of two that holds `size`, walked until it falls inside (Black, Rogaway 2002).
// Fewer than two steps on average, no memory.
class Permutation {
 public:
  // REQUIRES: size > 0.
  Permutation(uint64_t size, uint64_t key);

  // REQUIRES: index < size.
  uint64_t operator()(uint64_t index) const;

 private:
  // Even, so that halves of unequal width are back in their places at the end.
  static constexpr int kRounds = 6;

  uint64_t encrypt(uint64_t value) const;

  uint64_t size_;
  int low_bits_;
  int high_bits_;
  std::array<uint64_t, kRounds> round_keys_;
};

// Which tokens each sample of a training run sees: a function of (seed, sample) alone. Nothing is
// stored, so any step is reached at once, and nothing depends on how many ranks share the work.
//
// An epoch cuts the stream into windows of seq_len + 1 tokens at a stride of seq_len (the last
// target of one window is the first input of the next), starting at an offset of its own below
// seq_len, and visits them in an order of its own. Every epoch has the same number of windows, so
// up to seq_len tokens at either end of the stream wait for an epoch with another offset.
class WindowOrder {
 public:
  // Without shuffle every epoch starts at the first token and goes straight on.
  // Throws std::invalid_argument when the stream is shorter than seq_len + 1 tokens.
  WindowOrder(int64_t num_tokens, int64_t seq_len, uint64_t seed, bool shuffle);

  int64_t windows_per_epoch() const { return windows_per_epoch_; }

  // Position of the first token of a sample's window. REQUIRES: sample >= 0.
  int64_t window_begin(int64_t sample) const;

 private:
  int64_t seq_len_;
  uint64_t seed_;
  bool shuffle_;
  int64_t windows_per_epoch_;
  int64_t num_offsets_;
};

}  // namespace narrowgauge::data

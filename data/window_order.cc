#include "data/window_order.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>

#include "data/mix64.h"

namespace narrowgauge::data {

Permutation::Permutation(uint64_t size, uint64_t key) : size_(size) {
  // At least one bit a half, or a round would change nothing.
  const int bits = std::max(2, static_cast<int>(std::bit_width(size - 1)));
  low_bits_ = bits / 2;
  high_bits_ = bits - low_bits_;
  for (int round = 0; round < kRounds; ++round) round_keys_[round] = mix64(key, round);
}

uint64_t Permutation::encrypt(uint64_t value) const {
  int low_bits = low_bits_;
  int high_bits = high_bits_;
  for (const uint64_t key : round_keys_) {
    const uint64_t low = value & ((uint64_t{1} << low_bits) - 1);
    const uint64_t high = value >> low_bits;
    const uint64_t mixed = (high ^ mix64(key, low)) & ((uint64_t{1} << high_bits) - 1);
    value = (low << high_bits) | mixed;
    std::swap(low_bits, high_bits);
  }
  return value;
}

uint64_t Permutation::operator()(uint64_t index) const {
  do {
    index = encrypt(index);
  } while (index >= size_);
  return index;
}

WindowOrder::WindowOrder(int64_t num_tokens, int64_t seq_len, uint64_t seed, bool shuffle)
    : seq_len_(seq_len), seed_(seed), shuffle_(shuffle) {
  if (seq_len < 1 || num_tokens <= seq_len) {
    throw std::invalid_argument("expected more tokens than seq_len (at least 1), got " +
                                std::to_string(num_tokens) + " tokens and seq_len " +
                                std::to_string(seq_len) + "; add data or lower training.seq_len");
  }
  const int64_t last_begin = num_tokens - seq_len - 1;  // of any window
  // With shuffle, as many as fit behind every offset; a stream of less than two windows still
  // holds one.
  windows_per_epoch_ =
      shuffle ? std::max(int64_t{1}, num_tokens / seq_len - 1) : last_begin / seq_len + 1;
  num_offsets_ = std::min(seq_len, last_begin - (windows_per_epoch_ - 1) * seq_len + 1);
}

int64_t WindowOrder::window_begin(int64_t sample) const {
  const int64_t epoch = sample / windows_per_epoch_;
  const int64_t index = sample % windows_per_epoch_;
  if (!shuffle_) return index * seq_len_;
  const uint64_t key = mix64(seed_, static_cast<uint64_t>(epoch));
  const auto offset = scale_to(mix64(key, 0), static_cast<uint64_t>(num_offsets_));
  const Permutation permutation(static_cast<uint64_t>(windows_per_epoch_), mix64(key, 1));
  return static_cast<int64_t>(offset + permutation(static_cast<uint64_t>(index)) *
                                           static_cast<uint64_t>(seq_len_));
}

}  // namespace narrowgauge::data

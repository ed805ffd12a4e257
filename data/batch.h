#pragma once

#include <cstdint>
#include <vector>

namespace narrowgauge::data {

// A target that takes no part in the loss.
inline constexpr int64_t kIgnoredTarget = -100;

// Shape of inputs and targets: [batch_size, seq_len], row by row.
struct Batch {
  int64_t batch_size = 0;
  int64_t seq_len = 0;
  std::vector<int64_t> inputs;
  std::vector<int64_t> targets;  // the input one token on, or kIgnoredTarget
  // Where documents begin that do not see each other, counted over the rows one after another, then
  // batch_size * seq_len; each row begins one, and so does its padding. Empty: rows are whole.
  std::vector<int32_t> cu_seqlens = {};
  int64_t num_valid_tokens = 0;  // targets that are not ignored
};

}  // namespace narrowgauge::data

#pragma once

#include <algorithm>
#include <cstdint>

namespace narrowgauge::nn {

// Rows of which linear_cross_entropy_sum has logits at a time: 8 MiB of them, but never so few that
// adding up weight's gradient over chunks (10 bytes an element and chunk) shows beside the
// products.
inline int64_t loss_chunk_rows(int64_t vocab_size, int64_t element_bytes) {
  constexpr int64_t kLogitsBytes = 8 << 20;
  constexpr int64_t kMinRows = 1024;
  return std::max(kMinRows, kLogitsBytes / std::max<int64_t>(1, vocab_size * element_bytes));
}

}  // namespace narrowgauge::nn

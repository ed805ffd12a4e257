#include "trainer/scored_windows.h"

#include <ATen/ops/full.h>

#include <algorithm>
#include <functional>

#include "nn/transformer.h"

namespace narrowgauge::trainer {

std::vector<Window> cut_windows(const std::vector<ScoredDocument>& documents, int64_t seq_len) {
  std::vector<Window> windows;
  for (const ScoredDocument& document : documents) {
    const Window all(document.tokens);
    for (size_t begin = 0; begin + 1 < all.size(); begin += seq_len) {
      windows.push_back(all.subspan(begin, std::min<size_t>(seq_len + 1, all.size() - begin)));
    }
  }
  std::ranges::stable_sort(windows, std::greater<>(), &Window::size);
  return windows;
}

WindowBatch batch_of(std::span<const Window> windows) {
  const auto length = static_cast<int64_t>(windows.front().size()) - 1;
  const auto count = static_cast<int64_t>(windows.size());
  WindowBatch batch = {at::full({count, length}, 0, at::kLong),
                       at::full({count, length}, nn::kIgnoredTarget, at::kLong)};
  for (int64_t row = 0; row < count; ++row) {
    const Window& window = windows[row];
    std::copy(window.begin(), window.end() - 1, batch.inputs[row].data_ptr<int64_t>());
    std::copy(window.begin() + 1, window.end(), batch.targets[row].data_ptr<int64_t>());
  }
  return batch;
}

}  // namespace narrowgauge::trainer

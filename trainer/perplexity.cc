#include "trainer/perplexity.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <cmath>
#include <span>

namespace narrowgauge::trainer {
namespace {

// Predicts tokens[1..] from those before them; at most seq_len + 1 tokens.
using Window = std::span<const int64_t>;

std::vector<Window> cut_windows(const std::vector<ScoredDocument>& documents, int64_t seq_len) {
  std::vector<Window> windows;
  for (const ScoredDocument& document : documents) {
    const Window all(document.tokens);
    for (size_t begin = 0; begin + 1 < all.size(); begin += seq_len) {
      windows.push_back(all.subspan(begin, std::min<size_t>(seq_len + 1, all.size() - begin)));
    }
  }
  // Windows of one length run together without padding.
  std::ranges::stable_sort(windows, std::greater<>(), &Window::size);
  return windows;
}

double score(nn::Transformer& model, std::span<const Window> windows) {
  const auto length = static_cast<int64_t>(windows.front().size()) - 1;
  const auto batch = static_cast<int64_t>(windows.size());
  const at::Tensor inputs = at::full({batch, length}, 0, at::kLong);
  const at::Tensor targets = at::full({batch, length}, nn::kIgnoredTarget, at::kLong);
  for (int64_t row = 0; row < batch; ++row) {
    const Window& window = windows[row];
    std::copy(window.begin(), window.end() - 1, inputs[row].data_ptr<int64_t>());
    std::copy(window.begin() + 1, window.end(), targets[row].data_ptr<int64_t>());
  }
  const at::Device device = model.embed_tokens->weight.device();
  return model.loss_sum(inputs.to(device), targets.to(device)).item<double>();
}

}  // namespace

double Perplexity::per_token() const { return std::exp(loss()); }

std::optional<double> Perplexity::per_byte() const {
  return num_bytes > 0 ? std::optional(std::exp(loss_sum / static_cast<double>(num_bytes)))
                       : std::nullopt;
}

std::optional<double> Perplexity::per_word() const {
  return num_words > 0 ? std::optional(std::exp(loss_sum / static_cast<double>(num_words)))
                       : std::nullopt;
}

Perplexity evaluate_perplexity(nn::Transformer& model, const std::vector<ScoredDocument>& documents,
                               int64_t seq_len, int64_t batch_size,
                               const std::function<void(double)>& progress) {
  const at::NoGradGuard no_grad;
  const std::vector<Window> windows = cut_windows(documents, seq_len);
  Perplexity result;
  for (size_t begin = 0; begin < windows.size(); begin += batch_size) {
    const auto batch =
        std::span(windows).subspan(begin, std::min<size_t>(batch_size, windows.size() - begin));
    result.loss_sum += score(model, batch);
    for (const Window& window : batch) {
      result.num_tokens += static_cast<int64_t>(window.size()) - 1;
    }
    progress(static_cast<double>(begin + batch.size()) / static_cast<double>(windows.size()));
  }
  for (const ScoredDocument& document : documents) {
    if (document.tokens.size() > 1) {
      result.num_bytes += document.num_bytes;
      result.num_words += document.num_words;
    }
  }
  return result;
}

}  // namespace narrowgauge::trainer

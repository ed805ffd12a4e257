#include "trainer/perplexity.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <span>

namespace narrowgauge::trainer {
namespace {

double score(nn::Transformer& model, std::span<const Window> windows) {
  const WindowBatch batch = batch_of(windows);
  const at::Device device = model.embed_tokens->weight.device();
  return model.loss_sum(batch.inputs.to(device), batch.targets.to(device)).item<double>();
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

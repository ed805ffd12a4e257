#include "trainer/model_comparison.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/log_softmax.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace narrowgauge::trainer {
namespace {

// What is kept of one model while windows go by.
struct Track {
  double loss_sum = 0;
  int64_t num_same = 0;
  std::vector<float> divergences;
};

// The log probabilities of every position that predicts something: [positions, vocab], fp32.
at::Tensor log_probabilities(nn::Transformer& model, const at::Tensor& inputs,
                             const at::Tensor& is_scored) {
  const at::Device device = model.embed_tokens->weight.device();
  const at::Tensor logits = model(inputs.to(device)).flatten(0, 1);
  return at::log_softmax(logits.index({is_scored.to(device)}).to(at::kFloat), -1);
}

// The share q of the values lies at or below the result.
double quantile(std::vector<float>& values, double q) {
  const auto rank = static_cast<int64_t>(std::ceil(q * static_cast<double>(values.size()))) - 1;
  const auto at = values.begin() + std::max<int64_t>(0, rank);
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

ModelDivergence summary(Track& track) {
  const double n = static_cast<double>(track.divergences.size());
  ModelDivergence result;
  result.loss = track.loss_sum / n;
  result.same_top1 = static_cast<double>(track.num_same) / n;
  const double sum = std::accumulate(track.divergences.begin(), track.divergences.end(), 0.0);
  result.kl_mean = sum / n;
  double squares = 0;
  for (const float value : track.divergences) {
    squares += (value - result.kl_mean) * (value - result.kl_mean);
  }
  result.kl_standard_error = n > 1 ? std::sqrt(squares / (n - 1) / n) : 0.0;
  result.kl_median = quantile(track.divergences, 0.5);
  result.kl_p99 = quantile(track.divergences, 0.99);
  result.kl_max = *std::ranges::max_element(track.divergences);
  return result;
}

void add(const at::Tensor& base, const at::Tensor& scores, const at::Tensor& targets,
         Track& track) {
  const at::Tensor target_scores = scores.gather(1, targets.to(scores.device()).unsqueeze(1));
  track.loss_sum -= target_scores.to(at::kDouble).sum().item<double>();
  track.num_same += scores.argmax(-1).eq(base.argmax(-1)).sum().item<int64_t>();
  // A logit of -inf on both sides is a difference of nothing, not NaN.
  const at::Tensor terms = base.exp().mul(base.sub(scores));
  const at::Tensor divergence =
      terms.masked_fill(base.eq(-INFINITY), 0.0).sum(-1).clamp_min(0.0).cpu().contiguous();
  const float* values = divergence.const_data_ptr<float>();
  track.divergences.insert(track.divergences.end(), values, values + divergence.numel());
}

}  // namespace

ModelComparison compare_models(const std::vector<std::shared_ptr<nn::Transformer>>& models,
                               const std::vector<ScoredDocument>& documents, int64_t seq_len,
                               int64_t batch_size, const std::function<void(double)>& progress) {
  const at::NoGradGuard no_grad;
  for (const auto& model : models) {
    TORCH_CHECK(model->config().vocab_size == models.front()->config().vocab_size,
                "expected models of one vocabulary, got ", models.front()->config().vocab_size,
                " and ", model->config().vocab_size, " tokens");
  }
  std::vector<Track> tracks(models.size());
  const std::vector<Window> windows = cut_windows(documents, seq_len);
  for (size_t begin = 0; begin < windows.size(); begin += batch_size) {
    const auto rows = std::min<size_t>(batch_size, windows.size() - begin);
    const WindowBatch batch = batch_of(std::span(windows).subspan(begin, rows));
    const at::Tensor flat = batch.targets.flatten();
    const at::Tensor is_scored = flat.ne(nn::kIgnoredTarget);
    const at::Tensor targets = flat.index({is_scored});
    at::Tensor base;
    for (size_t i = 0; i < models.size(); ++i) {
      const at::Tensor scores = log_probabilities(*models[i], batch.inputs, is_scored);
      base = i == 0 ? scores : base.to(scores.device());
      add(base, scores, targets, tracks[i]);
    }
    progress(static_cast<double>(begin + rows) / static_cast<double>(windows.size()));
  }
  ModelComparison result;
  result.num_tokens = static_cast<int64_t>(tracks.front().divergences.size());
  for (Track& track : tracks) {
    result.models.push_back(summary(track));
  }
  return result;
}

}  // namespace narrowgauge::trainer

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "nn/transformer.h"
#include "trainer/scored_windows.h"

namespace narrowgauge::trainer {

// One model's predictions of a text beside the base model's, token by token.
struct ModelDivergence {
  double loss = 0;  // nats a token
  // Kullback-Leibler divergence of this model's distribution from the base's, sum of p_base
  // (log p_base - log p), in nats: over tokens the mean, its standard error, quantiles and largest.
  double kl_mean = 0;
  double kl_standard_error = 0;
  double kl_median = 0;
  double kl_p99 = 0;
  double kl_max = 0;
  double same_top1 = 0;  // share of tokens where both find the same one likeliest
};

struct ModelComparison {
  int64_t num_tokens = 0;
  std::vector<ModelDivergence> models;  // the base first, whose divergence is 0
};

// Runs every model (the first is the base) on the same windows; see evaluate_perplexity.
// Log-softmax and sums are fp32 per token, fp64 over tokens. Throws c10::Error unless all
// vocabularies have one size.
ModelComparison compare_models(const std::vector<std::shared_ptr<nn::Transformer>>& models,
                               const std::vector<ScoredDocument>& documents, int64_t seq_len,
                               int64_t batch_size, const std::function<void(double)>& progress);

}  // namespace narrowgauge::trainer

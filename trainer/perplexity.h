#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "nn/transformer.h"
#include "trainer/scored_windows.h"

namespace narrowgauge::trainer {

// Negative log-likelihood of documents. A document's first token is context only, every other one
// is predicted once.
struct Perplexity {
  double loss_sum = 0;  // nats
  int64_t num_tokens = 0;
  int64_t num_bytes = 0;
  int64_t num_words = 0;

  double loss() const { return loss_sum / static_cast<double>(num_tokens); }
  double per_token() const;
  // exp of the loss sum per byte and per word, the figures that do not depend on the tokenizer.
  // Nothing where the text is unknown.
  std::optional<double> per_byte() const;
  std::optional<double> per_word() const;
};

// Scores `documents` in windows of seq_len tokens that do not overlap: a token sees at most the
// seq_len tokens before it in its own document. Up to batch_size windows run together. `progress`
// gets the fraction done. The model runs without gradients.
Perplexity evaluate_perplexity(nn::Transformer& model, const std::vector<ScoredDocument>& documents,
                               int64_t seq_len, int64_t batch_size,
                               const std::function<void(double)>& progress);

}  // namespace narrowgauge::trainer

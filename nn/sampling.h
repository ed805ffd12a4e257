#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <random>
#include <span>
#include <vector>

#include "nn/transformer.h"

namespace narrowgauge::nn {

struct SamplingOptions {
  int64_t max_new_tokens = 100;
  double temperature = 0.8;  // 0: always the most likely token
  double top_p = 0.95;       // smallest set of tokens whose probabilities reach this; 1: all
  uint64_t seed = 0;
  std::vector<int64_t> stop_tokens;  // generation ends before one of these
};

// Draws one token from `logits` ([vocab_size], any floating dtype).
int64_t sample_token(const at::Tensor& logits, const SamplingOptions& options,
                     std::mt19937_64& generator);

// Continues `prompt` (at least one token) and returns the new tokens alone. on_token, if set, is
// called with each. Ends at a stop token, at max_new_tokens or where the model's max_seq_len is
// reached. The same seed gives the same tokens on every rank.
std::vector<int64_t> generate(Transformer& model, std::span<const int64_t> prompt,
                              const SamplingOptions& options,
                              const std::function<void(int64_t)>& on_token = nullptr);

}  // namespace narrowgauge::nn

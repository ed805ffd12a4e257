#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"
#include "nn/transformer.h"

namespace narrowgauge::trainer {

// A continuation to score behind its context. Neither is empty.
struct LikelihoodRequest {
  std::vector<int64_t> context;
  std::vector<int64_t> continuation;
};

struct Likelihood {
  double log_probability = 0;  // nats, of the whole continuation given the context
  bool is_greedy = false;      // each of its tokens is the likeliest one
};

// The request of two texts as lm-evaluation-harness cuts them (TemplateLM._encode_pair): spaces
// that end the context begin the continuation; both texts are encoded together, the context once
// more alone, and what goes beyond the latter's length is the continuation. An empty context is the
// token that begins a document, or the one that ends it. Throws std::runtime_error where the
// tokenizer has neither, or where nothing is left as continuation.
LikelihoodRequest encode_pair(const data::Tokenizer& tokenizer, std::string_view context,
                              std::string_view continuation);

// Scores requests, longest first, in batches of one window each of at most batch_tokens tokens (at
// least one request). A request longer than the model's max_seq_len + 1 loses the beginning of its
// context, as there. A continuation alone longer than max_seq_len, which the harness refuses, is
// scored in pieces of half of it, each behind all that precedes it. Log-softmax is taken in fp32
// and summed in fp64. Results stand in the order of the requests.
std::vector<Likelihood> log_likelihoods(nn::Transformer& model,
                                        const std::vector<LikelihoodRequest>& requests,
                                        int64_t batch_tokens,
                                        const std::function<void(double)>& progress);

// Tokens of a batch whose logits stay within 256 MiB in fp32, at most 4,096.
int64_t evaluation_batch_tokens(const nn::TransformerConfig& config);

}  // namespace narrowgauge::trainer

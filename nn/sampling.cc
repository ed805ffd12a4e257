#include "nn/sampling.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/Exception.h>

#include <algorithm>

namespace narrowgauge::nn {
namespace {

at::Tensor token_row(std::span<const int64_t> tokens, at::Device device) {
  std::vector<int64_t> copy(tokens.begin(), tokens.end());
  return at::from_blob(copy.data(), {1, static_cast<int64_t>(copy.size())}, at::kLong)
      .clone()
      .to(device);
}

}  // namespace

int64_t sample_token(const at::Tensor& logits, const SamplingOptions& options,
                     std::mt19937_64& generator) {
  TORCH_CHECK(logits.dim() == 1, "expected logits [vocab_size], got ", logits.sizes());
  const at::Tensor scores = logits.to(at::kCPU, at::kFloat);
  if (options.temperature == 0.0) {
    return scores.argmax().item<int64_t>();
  }
  const auto [sorted, order] =
      scores.div(options.temperature).softmax(0).sort(0, /*descending=*/true);
  const at::Tensor cumulative = sorted.to(at::kDouble).cumsum(0);
  const auto sums = cumulative.accessor<double, 1>();
  const int64_t vocab_size = sums.size(0);
  int64_t num_kept = 1;
  while (num_kept < vocab_size && sums[num_kept - 1] < options.top_p) {
    ++num_kept;
  }
  const double drawn = std::uniform_real_distribution<double>(0.0, sums[num_kept - 1])(generator);
  int64_t chosen = 0;
  while (chosen < num_kept - 1 && sums[chosen] <= drawn) {
    ++chosen;
  }
  return order[chosen].item<int64_t>();
}

std::vector<int64_t> generate(Transformer& model, std::span<const int64_t> prompt,
                              const SamplingOptions& options,
                              const std::function<void(int64_t)>& on_token) {
  const at::NoGradGuard no_grad;
  const TransformerConfig& config = model.config();
  const auto prompt_length = static_cast<int64_t>(prompt.size());
  TORCH_CHECK(prompt_length > 0, "expected a prompt of at least one token, got an empty one");
  TORCH_CHECK(prompt_length < config.max_seq_len,
              "expected a prompt shorter than model.max_seq_len ", config.max_seq_len, ", got ",
              prompt_length, " tokens");
  const int64_t room = config.max_seq_len - prompt_length;
  const int64_t max_new_tokens = std::min(options.max_new_tokens, room);
  const at::Device device = model.embed_tokens->weight.device();
  std::mt19937_64 generator(options.seed);

  KVCache cache(config, prompt_length + max_new_tokens);
  std::vector<int64_t> tokens;
  at::Tensor next = token_row(prompt, device);
  while (static_cast<int64_t>(tokens.size()) < max_new_tokens) {
    const at::Tensor logits = model(next, &cache);
    const int64_t token = sample_token(logits[0][-1], options, generator);
    if (std::ranges::find(options.stop_tokens, token) != options.stop_tokens.end()) {
      break;
    }
    tokens.push_back(token);
    if (on_token) {
      on_token(token);
    }
    next = token_row({&tokens.back(), 1}, device);
  }
  return tokens;
}

}  // namespace narrowgauge::nn

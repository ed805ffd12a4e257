#include "trainer/log_likelihood.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cctype>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>

namespace narrowgauge::trainer {
namespace {

std::vector<int64_t> widen(const std::vector<int32_t>& ids) { return {ids.begin(), ids.end()}; }

int64_t length_of(const LikelihoodRequest& request) {
  return static_cast<int64_t>(request.context.size() + request.continuation.size());
}

// What the model sees: all but the last token, at most max_seq_len of them.
std::vector<int64_t> model_input(const LikelihoodRequest& request, int64_t max_seq_len) {
  std::vector<int64_t> tokens = request.context;
  tokens.insert(tokens.end(), request.continuation.begin(), request.continuation.end());
  tokens.pop_back();
  const auto size = static_cast<int64_t>(tokens.size());
  tokens.erase(tokens.begin(), tokens.begin() + std::max<int64_t>(0, size - max_seq_len));
  return tokens;
}

// logits: [t, vocab] of the positions that predict the continuation.
Likelihood score(const at::Tensor& logits, const std::vector<int64_t>& continuation) {
  const at::Tensor scores = at::log_softmax(logits.to(at::kFloat), -1).cpu();
  const at::Tensor likeliest = scores.argmax(-1);
  Likelihood result{0, true};
  for (size_t i = 0; i < continuation.size(); ++i) {
    const auto row = static_cast<int64_t>(i);
    result.log_probability += scores[row][continuation[i]].item<double>();
    result.is_greedy = result.is_greedy && likeliest[row].item<int64_t>() == continuation[i];
  }
  return result;
}

// Requests whose continuations fit the model, and the request that each is a part of.
struct Pieces {
  std::vector<LikelihoodRequest> requests;
  std::vector<size_t> owners;
};

Pieces cut_to_fit(const std::vector<LikelihoodRequest>& requests, int64_t max_seq_len) {
  Pieces pieces;
  for (size_t owner = 0; owner < requests.size(); ++owner) {
    const LikelihoodRequest& request = requests[owner];
    if (request.context.empty() || request.continuation.empty()) {
      throw std::runtime_error("expected a context and a continuation of at least one token each");
    }
    const auto size = static_cast<int64_t>(request.continuation.size());
    const int64_t step = size <= max_seq_len ? size : std::max<int64_t>(1, max_seq_len / 2);
    LikelihoodRequest piece{request.context, {}};
    for (int64_t begin = 0; begin < size; begin += step) {
      const auto from = request.continuation.begin() + begin;
      piece.continuation.assign(from, from + std::min(step, size - begin));
      pieces.requests.push_back(piece);
      pieces.owners.push_back(owner);
      piece.context.insert(piece.context.end(), piece.continuation.begin(),
                           piece.continuation.end());
    }
  }
  return pieces;
}

}  // namespace

int64_t evaluation_batch_tokens(const nn::TransformerConfig& config) {
  constexpr int64_t kMostTokens = 4096;
  constexpr int64_t kLogitBytes = 256LL << 20;
  return std::clamp<int64_t>(kLogitBytes / (4 * config.vocab_size), 1, kMostTokens);
}

LikelihoodRequest encode_pair(const data::Tokenizer& tokenizer, std::string_view context,
                              std::string_view continuation) {
  size_t kept = context.size();
  while (kept > 0 && std::isspace(static_cast<unsigned char>(context[kept - 1])) != 0) {
    --kept;
  }
  const std::string whole = std::string(context) + std::string(continuation);
  LikelihoodRequest request;
  std::vector<int64_t> ids = widen(tokenizer.encode(whole));
  size_t num_context = 0;
  if (kept == 0) {
    const auto first = tokenizer.bos_id() ? tokenizer.bos_id() : tokenizer.eos_id();
    if (!first) {
      throw std::runtime_error(
          "expected a context, or a tokenizer with a token that begins or ends documents");
    }
    request.context = {*first};
  } else {
    request.context = widen(tokenizer.encode(context.substr(0, kept)));
    num_context = request.context.size();
  }
  if (ids.size() <= num_context) {
    throw std::runtime_error("expected tokens of the continuation '" + std::string(continuation) +
                             "' behind its context, got none");
  }
  request.continuation.assign(ids.begin() + static_cast<int64_t>(num_context), ids.end());
  return request;
}

std::vector<Likelihood> log_likelihoods(nn::Transformer& model,
                                        const std::vector<LikelihoodRequest>& all,
                                        int64_t batch_tokens,
                                        const std::function<void(double)>& progress) {
  const at::NoGradGuard no_grad;
  const int64_t max_seq_len = model.config().max_seq_len;
  const at::Device device = model.embed_tokens->weight.device();
  const Pieces pieces = cut_to_fit(all, max_seq_len);
  const std::vector<LikelihoodRequest>& requests = pieces.requests;
  std::vector<size_t> order(requests.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, std::greater<>(),
                           [&](size_t i) { return length_of(requests[i]); });
  std::vector<Likelihood> results(all.size(), Likelihood{0, true});
  for (size_t begin = 0; begin < order.size();) {
    const int64_t longest = std::min(max_seq_len, length_of(requests[order[begin]]) - 1);
    const auto rows =
        std::min<size_t>(order.size() - begin, std::max<int64_t>(1, batch_tokens / longest));
    const at::Tensor tokens = at::zeros({static_cast<int64_t>(rows), longest}, at::kLong);
    std::vector<int64_t> lengths;
    for (size_t row = 0; row < rows; ++row) {
      const auto input = model_input(requests[order[begin + row]], max_seq_len);
      std::ranges::copy(input, tokens[static_cast<int64_t>(row)].data_ptr<int64_t>());
      lengths.push_back(static_cast<int64_t>(input.size()));
    }
    const at::Tensor logits = model(tokens.to(device));
    for (size_t row = 0; row < rows; ++row) {
      const auto& continuation = requests[order[begin + row]].continuation;
      const auto count = static_cast<int64_t>(continuation.size());
      const Likelihood part = score(
          logits[static_cast<int64_t>(row)].narrow(0, lengths[row] - count, count), continuation);
      Likelihood& result = results[pieces.owners[order[begin + row]]];
      result.log_probability += part.log_probability;
      result.is_greedy = result.is_greedy && part.is_greedy;
    }
    begin += rows;
    progress(static_cast<double>(begin) / static_cast<double>(order.size()));
  }
  return results;
}

}  // namespace narrowgauge::trainer

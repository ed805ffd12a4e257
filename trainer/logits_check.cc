#include "trainer/logits_check.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>

#include <algorithm>

#include "checkpoint/huggingface_names.h"
#include "nn/transformer.h"

namespace narrowgauge::trainer {
namespace {

// Ids spread over the vocabulary: a multiplicative walk that comes back only after all of them.
at::Tensor spread_ids(int64_t vocab_size, int64_t tokens) {
  constexpr int64_t kStride = 1'000'003;  // prime, so coprime to every smaller vocabulary
  return at::arange(tokens, at::TensorOptions(at::kLong)).add(1).mul(kStride).remainder(vocab_size);
}

}  // namespace

LogitsDifference compare_logits(const at::Tensor& a, const at::Tensor& b) {
  LogitsDifference difference;
  difference.tokens = a.size(0);
  difference.largest = a.sub(b).abs().max().item<double>();
  difference.scale = a.abs().max().item<double>();
  difference.same_argmax = a.argmax(1).eq(b.argmax(1)).sum().item<int64_t>();
  return difference;
}

at::Tensor logits_of(const nn::TransformerConfig& config, const exports::TensorReader& weights,
                     at::ScalarType dtype, int64_t tokens) {
  const at::NoGradGuard no_grad;
  nn::Transformer model(config, at::TensorOptions().device(at::kMeta).dtype(dtype));
  for (const checkpoint::ParameterSpec& spec : checkpoint::parameter_specs(config)) {
    model.replace_parameter(spec.name, exports::fused_parameter(config, spec, weights).to(dtype));
  }
  const int64_t length = std::min(tokens, config.max_seq_len);
  return model(spread_ids(config.vocab_size, length).unsqueeze(0)).squeeze(0).to(at::kFloat);
}

}  // namespace narrowgauge::trainer

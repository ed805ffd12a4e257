#pragma once

#include <ATen/core/Tensor.h>

namespace narrowgauge::nn {

// What a model's last layer and its loss compute together, so that a loss may work in chunks of
// rows: Transformer::loss_sum calls one of the methods, between the hooks of the model and the
// head, while their parameters are there. Both return `scale` times the sum over the valid ones of
// `targets`, a 0-dim tensor.
class TrainingLoss {
 public:
  struct Batch {
    at::Tensor tokens;   // [batch, t], what the model read
    at::Tensor targets;  // [batch * t], kIgnoredTarget where there is nothing to predict
    double scale = 1.0;
    at::Tensor cu_seqlens{};  // documents that do not see each other, see causal_attention
  };

  virtual ~TrainingLoss() = default;

  // x: [batch * t, dim], what the head reads; weight: [V, dim], the head's.
  virtual at::Tensor of_hidden(const at::Tensor& x, const at::Tensor& weight,
                               const Batch& batch) = 0;
  // logits: [batch * t, V], of a head that a conversion has replaced.
  virtual at::Tensor of_logits(const at::Tensor& logits, const Batch& batch) = 0;
};

// The sum of -log p(target).
class CrossEntropyLoss : public TrainingLoss {
 public:
  at::Tensor of_hidden(const at::Tensor& x, const at::Tensor& weight, const Batch& batch) override;
  at::Tensor of_logits(const at::Tensor& logits, const Batch& batch) override;
};

inline constexpr int64_t kIgnoredTarget = -100;  // torch's ignore_index

}  // namespace narrowgauge::nn

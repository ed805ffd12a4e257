#include "nn/training_loss.h"

#include "nn/cross_entropy.h"
#include "nn/linear_cross_entropy.h"

namespace narrowgauge::nn {

at::Tensor CrossEntropyLoss::of_hidden(const at::Tensor& x, const at::Tensor& weight,
                                       const Batch& batch) {
  return linear_cross_entropy_sum(x, weight, batch.targets, batch.scale, kIgnoredTarget);
}

at::Tensor CrossEntropyLoss::of_logits(const at::Tensor& logits, const Batch& batch) {
  return cross_entropy_sum(logits, batch.targets, kIgnoredTarget).mul(batch.scale);
}

}  // namespace narrowgauge::nn

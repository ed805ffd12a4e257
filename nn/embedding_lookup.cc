#include "nn/embedding_lookup.h"

#include <ATen/ops/embedding.h>

namespace narrowgauge::nn {

at::Tensor embedding_lookup(const at::Tensor& weight, const at::Tensor& ids) {
  return at::embedding(weight, ids);
}

}  // namespace narrowgauge::nn

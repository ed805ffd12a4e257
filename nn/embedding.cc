#include "nn/embedding.h"

#include <ATen/ops/empty.h>

#include "nn/embedding_lookup.h"

namespace narrowgauge::nn {

Embedding::Embedding(int64_t num_embeddings, int64_t dim, const at::TensorOptions& options) {
  add_parameter("weight", weight, at::empty({num_embeddings, dim}, options));
}

at::Tensor Embedding::operator()(const at::Tensor& tokens) {
  return hooked(tokens, [this](const at::Tensor& ids) { return embedding_lookup(weight, ids); });
}

}  // namespace narrowgauge::nn

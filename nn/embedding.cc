#include "nn/embedding.h"

#include <ATen/ops/empty.h>

#include "nn/embedding_lookup.h"

namespace narrowgauge::nn {

Embedding::Embedding(int64_t num_embeddings, int64_t dim, const at::TensorOptions& options) {
  add_parameter("weight", weight, at::empty({num_embeddings, dim}, options));
}

Embedding::Embedding(const Embedding& source) : Layer() {
  const bool trains = source.weight.requires_grad();
  add_parameter("weight", weight, source.weight);
  weight.set_requires_grad(trains);
}

at::Tensor Embedding::operator()(const at::Tensor& tokens) {
  return hooked(tokens, [this](const at::Tensor& ids) { return forward(ids); });
}

at::Tensor Embedding::forward(const at::Tensor& tokens) { return embedding_lookup(weight, tokens); }

}  // namespace narrowgauge::nn

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "nn/layer.h"

namespace narrowgauge::nn {

// Rows of a table by token id.
class Embedding : public Layer {
 public:
  Embedding(int64_t num_embeddings, int64_t dim, const at::TensorOptions& options);

  // tokens: [...] int64 in [0, num_embeddings) -> [..., dim] in the table's dtype.
  at::Tensor operator()(const at::Tensor& tokens);

  at::Tensor weight;  // [num_embeddings, dim]
};

}  // namespace narrowgauge::nn

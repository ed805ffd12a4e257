#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "nn/layer.h"

namespace narrowgauge::nn {

// Rows of a table by token id. Conversions (QAT) derive from it and share its table, as with
// Linear.
class Embedding : public Layer {
 public:
  Embedding(int64_t num_embeddings, int64_t dim, const at::TensorOptions& options);
  // Shares the table with `source`.
  explicit Embedding(const Embedding& source);

  // tokens: [...] int64 in [0, num_embeddings) -> [..., dim] in the table's dtype.
  at::Tensor operator()(const at::Tensor& tokens);

  at::Tensor weight;  // [num_embeddings, dim]

 protected:
  virtual at::Tensor forward(const at::Tensor& tokens);
};

}  // namespace narrowgauge::nn

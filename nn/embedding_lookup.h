#pragma once

#include <ATen/core/Tensor.h>

namespace narrowgauge::nn {

// Rows of a table by id, with a backward that sums in fp32.
// weight: [num_embeddings, dim] bf16 or fp32; ids: [...] int64 in [0, num_embeddings). Returns
// [..., dim] in weight's dtype. Differentiable once in weight: each row of the gradient is the sum
// of its tokens' gradients in the order of the tokens, in fp32 with one rounding at the end, so the
// bits do not depend on the number of threads. (at::embedding sums in weight's dtype.)
// Throws on an id out of range and names its position.
at::Tensor embedding_lookup(const at::Tensor& weight, const at::Tensor& ids);

}  // namespace narrowgauge::nn

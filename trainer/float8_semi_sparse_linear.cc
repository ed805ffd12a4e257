#include "trainer/float8_semi_sparse_linear.h"

namespace narrowgauge::trainer {

Float8SemiSparseLinear::Float8SemiSparseLinear(const nn::Linear& source,
                                               const float8::Float8LinearConfig& config,
                                               const sparsity::SemiSparseOptions& options)
    : float8::Float8Linear(source, config), sparsity::SemiSparseMask(source.spec, options) {}

at::Tensor Float8SemiSparseLinear::forward(const at::Tensor& x) {
  return multiply(x, is_sparse() ? masked(weight) : weight);
}

}  // namespace narrowgauge::trainer

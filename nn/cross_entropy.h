#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace narrowgauge::nn {

// Sum over valid rows of logsumexp(logits) - logits[target]: the numerator of the training loss;
// the caller divides by the global number of valid targets.
// logits: [N, V] bf16 or fp32; targets: [N] int64 in [0, V), or ignore_index for a row without a
// target (it adds nothing and gets a zero gradient). Returns a 0-dim fp32 tensor; no valid row: 0.
// Statistics in fp32, rows summed in fp64 in a fixed order, so the bits do not depend on the number
// of threads. Differentiable once in logits; saves logits and one fp32 a row.
// Throws on a target out of range and names its position; on a GPU, where reading the targets would
// cost a wait, the loss is NaN instead. A row whose logits hold a NaN or +inf
// gives a NaN loss; -inf is probability zero.
at::Tensor cross_entropy_sum(const at::Tensor& logits, const at::Tensor& targets,
                             int64_t ignore_index = -100);

// The same in ATen operators: for tests, other devices and other dtypes.
at::Tensor cross_entropy_sum_reference(const at::Tensor& logits, const at::Tensor& targets,
                                       int64_t ignore_index = -100);

// Throws unless targets ([rows] int64, contiguous on the CPU) are in [0, vocab) or ignore_index.
void check_targets(const at::Tensor& targets, int64_t rows, int64_t vocab, int64_t ignore_index);

}  // namespace narrowgauge::nn

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <string_view>

// Pruning after training: which weights of a trained matrix can go. Matrices are [out, in], as a
// Linear's; statistics are of its inputs over calibration text.
namespace narrowgauge::sparsity {

// What may stay: a share of all elements, or at most `keep` of each `group` neighbours along `in`.
struct PruningPattern {
  double sparsity = 0.5;  // unstructured: the share that is pruned
  int64_t keep = 0;       // 0: unstructured
  int64_t group = 0;

  bool is_unstructured() const { return group == 0; }
};

// "0.5" (a share), "2:4", "4:8": keep of group. Throws c10::Error for anything else.
PruningPattern parse_pruning_pattern(std::string_view text);
std::string to_string(const PruningPattern& pattern);

// Masks are bool [out, in], true where the element stays. Of equal elements those of lower columns
// stay. Throws c10::Error if `in` is no multiple of the group.

// By |W|; unstructured over the whole matrix.
at::Tensor magnitude_mask(const at::Tensor& weight, const PruningPattern& pattern);

// By |W| * ||x_j|| (Sun et al. 2023): input_norm [in] is the L2 norm of each input over the
// calibration tokens. Unstructured within each output row, as the paper has it (torchao's
// WandaSparsifier takes the squared norm and the whole layer).
at::Tensor wanda_mask(const at::Tensor& weight, const at::Tensor& input_norm,
                      const PruningPattern& pattern);

struct SparseGptOptions {
  int64_t block_size = 128;  // at least 1: columns whose unstructured mask is chosen at a time
  double damping = 0.01;     // of the mean diagonal of the Hessian
};

// Frantar & Alistarh 2023, algorithm 1: prunes columns from left to right and moves each error into
// the columns right of it. gram: [in, in] fp32, the sum of x x^T over the calibration tokens.
// Returns the pruned and corrected matrix, of the weight's dtype. Inputs that were always 0 lose
// their weights. Throws c10::Error if gram stays indefinite after damping, or for a block_size that
// is not positive or that the pattern's group does not divide.
at::Tensor sparsegpt(const at::Tensor& weight, const at::Tensor& gram,
                     const PruningPattern& pattern, const SparseGptOptions& options = {});

}  // namespace narrowgauge::sparsity

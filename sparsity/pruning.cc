#include "sparsity/pruning.h"

#include <ATen/ops/argsort.h>
#include <ATen/ops/cholesky_inverse.h>
#include <ATen/ops/linalg_cholesky_ex.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

namespace narrowgauge::sparsity {
namespace {

void check_pattern(const at::Tensor& weight, const PruningPattern& pattern) {
  TORCH_CHECK(weight.dim() == 2, "expected [out, in], got ", weight.sizes());
  if (pattern.is_unstructured()) {
    TORCH_CHECK(pattern.sparsity >= 0 && pattern.sparsity < 1, "expected 0 <= sparsity < 1, got ",
                pattern.sparsity);
    return;
  }
  TORCH_CHECK(
      pattern.keep > 0 && pattern.keep < pattern.group && weight.size(1) % pattern.group == 0,
      "expected in_features that ", pattern.group, " divides, got ", weight.size(1));
}

// The `count` largest of each row of `score` [rows, n], the first of equal ones.
at::Tensor largest_of_rows(const at::Tensor& score, int64_t count) {
  const at::Tensor order = at::argsort(score, /*stable=*/true, 1, /*descending=*/true);
  const at::Tensor keep = at::zeros(score.sizes(), score.options().dtype(at::kBool));
  return keep.scatter_(1, order.narrow(1, 0, count), true);
}

int64_t num_kept(double sparsity, int64_t count) {
  return count - static_cast<int64_t>(std::floor(sparsity * static_cast<double>(count)));
}

at::Tensor keep_of_groups(const at::Tensor& score, const PruningPattern& pattern) {
  return largest_of_rows(score.reshape({-1, pattern.group}), pattern.keep).view(score.sizes());
}

// The upper Cholesky factor of the inverse of the damped Hessian: its diagonal is what an error in
// a column costs once all columns left of it are settled.
at::Tensor inverse_factor(const at::Tensor& gram, double damping) {
  const at::Tensor hessian = gram.clone();
  const at::Tensor diagonal = hessian.diagonal();
  diagonal.add_(diagonal.mean(), damping);
  const auto [lower, info] = at::linalg_cholesky_ex(hessian);
  TORCH_CHECK(info.item<int64_t>() == 0,
              "expected a positive definite Hessian, got one that is not after damping ", damping,
              "; more calibration text or more damping helps");
  return std::get<0>(at::linalg_cholesky_ex(at::cholesky_inverse(lower), /*upper=*/true));
}

class SparseGpt {
 public:
  SparseGpt(const at::Tensor& weight, const at::Tensor& gram, const PruningPattern& pattern,
            const SparseGptOptions& options)
      : pattern_(pattern), weight_(weight.to(at::kFloat).clone()) {
    const at::Tensor dead = gram.diagonal().eq(0);
    const at::Tensor hessian = gram.to(at::kFloat).clone();
    hessian.diagonal().masked_fill_(dead, 1.0);
    weight_.masked_fill_(dead.unsqueeze(0), 0.0);
    factor_ = inverse_factor(hessian, options.damping);
    diagonal_ = factor_.diagonal();
  }

  const at::Tensor& weight() const { return weight_; }

  // Columns [begin, end): prunes them, then settles what that changes right of them.
  void prune_block(int64_t begin, int64_t end) {
    const at::Tensor block = weight_.narrow(1, begin, end - begin);
    const at::Tensor errors = at::zeros_like(block);
    at::Tensor keep = pattern_.is_unstructured() ? keep_of_block(block, begin)
                                                 : at::zeros(block.sizes(), at::kBool);
    for (int64_t col = begin; col < end; ++col) {
      const int64_t i = col - begin;
      if (!pattern_.is_unstructured() && col % pattern_.group == 0) {
        keep.narrow(1, i, pattern_.group).copy_(keep_of_group(col));
      }
      const at::Tensor column = block.select(1, i);
      const at::Tensor pruned = column.masked_fill(keep.select(1, i).logical_not(), 0);
      const at::Tensor error = column.sub(pruned).div(diagonal_[col]);
      const at::Tensor row = factor_[col].narrow(0, col, end - col);
      block.narrow(1, i, end - col).sub_(at::outer(error, row));
      column.copy_(pruned);
      errors.select(1, i).copy_(error);
    }
    const int64_t rest = weight_.size(1) - end;
    if (rest > 0) {
      weight_.narrow(1, end, rest)
          .addmm_(errors, factor_.narrow(0, begin, end - begin).narrow(1, end, rest), 1, -1);
    }
  }

 private:
  at::Tensor cost(const at::Tensor& columns, int64_t begin) const {
    return columns.square().div(diagonal_.narrow(0, begin, columns.size(1)).square());
  }

  at::Tensor keep_of_block(const at::Tensor& block, int64_t begin) const {
    const at::Tensor score = cost(block, begin).reshape({1, -1});
    return largest_of_rows(score, num_kept(pattern_.sparsity, score.numel())).view(block.sizes());
  }

  at::Tensor keep_of_group(int64_t col) const {
    return largest_of_rows(cost(weight_.narrow(1, col, pattern_.group), col), pattern_.keep);
  }

  PruningPattern pattern_;
  at::Tensor weight_;  // [out, in] fp32
  at::Tensor factor_;  // [in, in]
  at::Tensor diagonal_;
};

bool parse_whole(std::string_view text, auto& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

PruningPattern parse_pruning_pattern(std::string_view text) {
  PruningPattern pattern;
  bool is_valid = false;
  if (const size_t colon = text.find(':'); colon != std::string_view::npos) {
    is_valid = parse_whole(text.substr(0, colon), pattern.keep) &&
               parse_whole(text.substr(colon + 1), pattern.group) && pattern.keep > 0 &&
               pattern.keep < pattern.group && pattern.group <= 1024;
  } else {
    is_valid = parse_whole(text, pattern.sparsity) && pattern.sparsity >= 0 && pattern.sparsity < 1;
  }
  TORCH_CHECK(is_valid,
              "expected a share of pruned weights in [0, 1), or keep:group such as 2:4, got ",
              std::string(text));
  return pattern;
}

std::string to_string(const PruningPattern& pattern) {
  if (!pattern.is_unstructured()) {
    return std::to_string(pattern.keep) + ":" + std::to_string(pattern.group);
  }
  char text[32];
  std::snprintf(text, sizeof text, "%g", pattern.sparsity);
  return text;
}

at::Tensor magnitude_mask(const at::Tensor& weight, const PruningPattern& pattern) {
  check_pattern(weight, pattern);
  const at::Tensor score = weight.detach().abs();
  if (!pattern.is_unstructured()) {
    return keep_of_groups(score, pattern);
  }
  return largest_of_rows(score.reshape({1, -1}), num_kept(pattern.sparsity, score.numel()))
      .view(score.sizes());
}

at::Tensor wanda_mask(const at::Tensor& weight, const at::Tensor& input_norm,
                      const PruningPattern& pattern) {
  check_pattern(weight, pattern);
  TORCH_CHECK(input_norm.dim() == 1 && input_norm.size(0) == weight.size(1),
              "expected a norm for each of ", weight.size(1), " inputs, got ", input_norm.sizes());
  const at::Tensor score =
      weight.detach().to(at::kFloat).abs().mul(input_norm.to(at::kFloat).unsqueeze(0));
  return pattern.is_unstructured()
             ? largest_of_rows(score, num_kept(pattern.sparsity, score.size(1)))
             : keep_of_groups(score, pattern);
}

at::Tensor sparsegpt(const at::Tensor& weight, const at::Tensor& gram,
                     const PruningPattern& pattern, const SparseGptOptions& options) {
  check_pattern(weight, pattern);
  const int64_t cols = weight.size(1);
  TORCH_CHECK(gram.dim() == 2 && gram.size(0) == cols && gram.size(1) == cols,
              "expected a Gram matrix of ", cols, " x ", cols, ", got ", gram.sizes());
  TORCH_CHECK(options.block_size > 0, "expected a block_size of at least 1, got ",
              options.block_size);
  TORCH_CHECK(pattern.is_unstructured() || options.block_size % pattern.group == 0,
              "expected a block_size that ", pattern.group, " divides, got ", options.block_size);
  SparseGpt sparse(weight.detach(), gram, pattern, options);
  for (int64_t begin = 0; begin < cols; begin += options.block_size) {
    sparse.prune_block(begin, std::min(begin + options.block_size, cols));
  }
  return sparse.weight().to(weight.scalar_type());
}

}  // namespace narrowgauge::sparsity

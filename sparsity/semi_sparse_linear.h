#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "nn/layer.h"
#include "nn/linear.h"
#include "nn/swap_linear.h"
#include "sparsity/semi_structured.h"

namespace narrowgauge::sparsity {

// What of the masked weight's gradient reaches the weight.
enum class GradientType {
  kStraightThrough,  // all of it, as if the mask were the identity: what is pruned can come back
  kMasked,           // what the mask keeps: torchao's DENSE and SPARSE, which differ in storage alone
};

struct SemiSparseOptions {
  TileAlgorithm algorithm = TileAlgorithm::kOptimal;
  GradientType gradient = GradientType::kStraightThrough;
  // SR-STE (Zhou et al. 2021, equation 9): adds decay * (pruned weights) to the gradient, which draws
  // them to zero, so that masks settle. Once for each backward: who sums the gradients of n backwards
  // divides by n.
  double sr_ste_decay = 0;
};

// y = x (mask * W)^T + b. The mask is 2:4 along both dims of W, so that forward and the input's
// gradient are products with a 2:4 matrix; the weight's gradient is a dense product.
class SemiSparseLinear : public nn::Linear {
 public:
  SemiSparseLinear(const nn::Linear& source, const SemiSparseOptions& options);

  // Without sparsity the layer is a plain Linear; the mask stays.
  void set_sparse(bool is_sparse) { is_sparse_ = is_sparse; }
  bool is_sparse() const { return is_sparse_; }

  // The next forward makes a new mask from the weight. True at first.
  void refresh_mask() { refresh_ = true; }

  // uint8 [out, in / 8], a CPU tensor that stays the same one: a checkpoint saves and fills it.
  const at::Tensor& mask() const { return mask_; }
  // What mask() holds is used from now on, until refresh_mask.
  void keep_mask() { refresh_ = false; }

  SemiSparseOptions options;

 protected:
  at::Tensor forward(const at::Tensor& x) override;

 private:
  at::Tensor mask_;
  bool is_sparse_ = true;
  bool refresh_ = true;
};

// y = (mask * x) W^T + b with a mask along both dims of x [tokens, in], made anew each time; the
// gradient of x passes straight through. Backward needs the packed x alone: 9/16 of its bytes.
// Tokens are padded to a multiple of 4 with zeros.
class SemiSparseActivationLinear : public nn::Linear {
 public:
  SemiSparseActivationLinear(const nn::Linear& source, TileAlgorithm algorithm);

  TileAlgorithm algorithm;

 protected:
  at::Tensor forward(const at::Tensor& x) override;
};

// Makes a SemiSparseLinear of every Linear below `root` that `filter` accepts (all where it is null)
// and whose weight has_semi_structured_shape. Before fully_shard. Returns how many.
int64_t swap_linear_with_semi_sparse_linear(nn::Layer& root, const SemiSparseOptions& options,
                                            const nn::LinearFilter& filter = nullptr);

// Makes a plain Linear of each of them again, for dense training or export. The weights are what they
// were, pruned elements included: apply_mask makes the zeros.
int64_t swap_semi_sparse_linear_with_linear(nn::Layer& root);

}  // namespace narrowgauge::sparsity

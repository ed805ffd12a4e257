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
  kMasked,  // what the mask keeps: torchao's DENSE and SPARSE, which differ in storage alone
};

struct SemiSparseOptions {
  TileAlgorithm algorithm = TileAlgorithm::kOptimal;
  GradientType gradient = GradientType::kStraightThrough;
  // SR-STE (Zhou et al. 2021, equation 9): adds decay * (pruned weights) to the gradient, which
  // draws them to zero, so that masks settle. Once for each backward: who sums the gradients of n
  // backwards divides by n.
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

  // Whether the next forward makes a new mask from the weight. It does at first.
  void set_refresh_mask(bool refresh) { refresh_ = refresh; }

  // uint8 [out, in / 8], a CPU tensor that stays the same one: a checkpoint saves and fills it.
  // Waits for a GPU.
  const at::Tensor& mask() const;
  // What was written into mask() is used from now on.
  void take_mask() { device_mask_ = at::Tensor(); }

  SemiSparseOptions options;

 protected:
  at::Tensor forward(const at::Tensor& x) override;

 private:
  at::Tensor mask_;
  at::Tensor device_mask_;  // where the weight is; undefined before use
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

// Makes a SemiSparseLinear of every Linear below `root` that `filter` accepts (all where it is
// null) and whose weight has_semi_structured_shape. Before fully_shard. Returns how many.
int64_t swap_linear_with_semi_sparse_linear(nn::Layer& root, const SemiSparseOptions& options,
                                            const nn::LinearFilter& filter = nullptr);

// Makes a plain Linear of each of them again, for dense training or export. The weights are what
// they were, pruned elements included: apply_mask makes the zeros.
int64_t swap_semi_sparse_linear_with_linear(nn::Layer& root);

}  // namespace narrowgauge::sparsity

#pragma once

#include <ATen/core/Tensor.h>

#include "nn/linear.h"
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

// The mask of a linear's weight over a run: what such a linear has beside its parameters. It is 2:4
// along both dims of W, so that forward and the input's gradient are products with a 2:4 matrix;
// the weight's gradient is a dense product.
class SemiSparseMask {
 public:
  // Throws c10::Error for a shape that cannot be masked.
  SemiSparseMask(const nn::LinearSpec& spec, const SemiSparseOptions& options);
  virtual ~SemiSparseMask() = default;

  // Without sparsity the layer is what it is without a mask; the mask stays.
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
  // The mask of this forward, where the weight is.
  const at::Tensor& mask_of(const at::Tensor& weight);

  // mask * W, whose gradient reaches W as options.gradient says.
  at::Tensor masked(const at::Tensor& weight);

 private:
  at::Tensor mask_;
  at::Tensor device_mask_;  // undefined before use
  bool is_sparse_ = true;
  bool refresh_ = true;
};

// What reaches the weight of the masked weight's gradient, which may be changed in place. `weight`
// is read with SR-STE alone.
at::Tensor weight_gradient(const at::Tensor& grad_masked, const at::Tensor& weight,
                           const at::Tensor& mask, GradientType gradient, double sr_ste_decay);

}  // namespace narrowgauge::sparsity

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "nn/layer.h"
#include "nn/linear.h"
#include "sparsity/semi_structured.h"

namespace narrowgauge::sparsity {

// A linear for inference whose weight is 2:4 along in_features and stays packed, 9/16 of its bytes:
// with few tokens a product costs what reading the weight does. Computes what the dense linear
// does, up to the order of fp32 sums. For many tokens the weight is unpacked at each call, strip by
// strip. `weight` is a meta tensor. bf16 on the CPU.
class PackedSemiSparseLinear : public nn::Linear {
 public:
  // Throws c10::Error unless is_semi_structured(source.weight).
  explicit PackedSemiSparseLinear(const nn::Linear& source);

 protected:
  at::Tensor forward(const at::Tensor& x) override;

 private:
  SemiStructuredTensor packed_;
};

// Whether a linear with this weight can be packed: bf16 on the CPU, a shape that can be masked, and
// at most two of each four neighbours along the columns other than 0. Most dense weights are told
// apart by their first rows.
bool is_semi_structured(const at::Tensor& weight);

// Makes a PackedSemiSparseLinear of every Linear below `root` whose weight is_semi_structured. The
// weights are freed unless someone else holds them. Returns how many.
int64_t pack_semi_structured_linears(nn::Layer& root);

}  // namespace narrowgauge::sparsity

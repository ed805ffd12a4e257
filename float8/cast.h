#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "float8/float8_training_tensor.h"
#include "float8/scaling.h"

// High precision ("hp": bf16, fp16, fp32) to fp8. x: [rows, cols], any strides. codes are
// to_fp8_saturated(x.to(fp32) * scale), bit-equal to torchao's. Nothing here is differentiable:
// gradients pass a cast unchanged, which Float8Linear sees to.
//
// A linear reads each operand in two of its three products, contracting another dimension in each:
//   y = x W^T: x and W over dim 1;  grad_x = g W: g over dim 1, W over dim 0;
//   grad_W = g^T x: both over dim 0.
// The data's layout is that of x on CPU (its product reads both) and the one that the device's
// product over `dim` wants elsewhere.
namespace narrowgauge::float8 {

// Scales from the values themselves (dynamic scaling).
Float8TrainingTensor hp_tensor_to_float8_dynamic(const at::Tensor& x, const CastSpec& spec,
                                                 int64_t dim);

// With scales known before (delayed, precomputed, agreed with other ranks): one pass over x. scale:
// the multiplier, fp32, of tensor_to_amax's shape. Not for e8m0 specs.
Float8TrainingTensor hp_tensor_and_scale_to_float8(const at::Tensor& x, const at::Tensor& scale,
                                                   const CastSpec& spec, int64_t dim);

// The same, and the amax of what was cast, for the history of delayed scaling: still one pass.
struct CastWithAmax {
  Float8TrainingTensor tensor;
  at::Tensor amax;  // as tensor_to_amax(x, spec.granularity, dim)
};
CastWithAmax hp_tensor_and_scale_to_float8_with_amax(const at::Tensor& x, const at::Tensor& scale,
                                                     const CastSpec& spec, int64_t dim);

// One scale for the whole of x, known before, and both of its operands: one pass, on any device.
// scale: fp32 [] on x's device. spec: tensorwise.
struct BothDimsWithAmax {
  Float8TrainingTensor dim1;
  Float8TrainingTensor dim0;
  at::Tensor amax;  // fp32 []
};
BothDimsWithAmax hp_tensor_and_scale_to_float8_both_dims(const at::Tensor& x,
                                                         const at::Tensor& scale,
                                                         const CastSpec& spec);

// Both operands that a linear makes of x: contracted over dim 1 and over dim 0. One read of x for
// scales and one for codes; a single cast feeds both where the groups do not depend on dim
// (tensorwise, 128x128) and the specs are equal: data and scales are then shared.
struct BothDims {
  Float8TrainingTensor dim1;
  Float8TrainingTensor dim0;
};
BothDims hp_tensor_to_float8_both_dims(const at::Tensor& x, const CastSpec& spec_dim1,
                                       const CastSpec& spec_dim0);

// The same cast in the layout that a product over dim 0 reads: shared on CPU, a transposed copy
// elsewhere. REQUIRES: its groups do not depend on dim.
Float8TrainingTensor readable_over_dim0(const Float8TrainingTensor& cast);

// What a cast lost, for health metrics.
struct CastStatistics {
  double saturated_fraction;    // codes of the largest magnitude
  double underflowed_fraction;  // zero codes of values that are not zero
};
CastStatistics cast_statistics(const at::Tensor& x, const Float8TrainingTensor& cast);

// The same in ATen operators, which take several times the memory of x.
CastStatistics cast_statistics_reference(const at::Tensor& x, const Float8TrainingTensor& cast);

// hp_tensor_and_scale_to_float8 in ATen operators.
Float8TrainingTensor hp_tensor_and_scale_to_float8_reference(const at::Tensor& x,
                                                             const at::Tensor& scale,
                                                             const CastSpec& spec, int64_t dim);

}  // namespace narrowgauge::float8

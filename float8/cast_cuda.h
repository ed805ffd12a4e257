#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>

#include "float8/float8_training_tensor.h"
#include "float8/scaling.h"

// What cast.h calls for tensors on a GPU: the same results bit for bit, and the layout
// that a product over `dim` reads without a copy: row-major data for dim 1, column-major for dim 0.
namespace narrowgauge::float8 {

// Whether the functions below take this: e8m0 scales are made by ATen's operators.
bool has_cuda_cast(const at::Tensor& x, const CastSpec& spec);

Float8TrainingTensor hp_tensor_and_scale_to_float8_cuda(const at::Tensor& x,
                                                        const at::Tensor& scale,
                                                        const CastSpec& spec, int64_t dim);

Float8TrainingTensor hp_tensor_to_float8_dynamic_cuda(const at::Tensor& x, const CastSpec& spec,
                                                      int64_t dim);

// One scale for the whole of x, known before: both layouts and max |x|, fp32 [], from one read.
// scale: fp32 [] on x's device; spec: tensorwise.
struct KnownScaleCasts {
  Float8TrainingTensor dim1;
  Float8TrainingTensor dim0;
  at::Tensor amax;
};
KnownScaleCasts hp_tensor_and_scale_to_float8_both_dims_cuda(const at::Tensor& x,
                                                             const at::Tensor& scale,
                                                             const CastSpec& spec);

// The two casts share scales where the groups do not depend on dim, but never data: a GPU's product
// reads one layout each. One read of x for all scales (two for blocks of 1x128) and one for codes.
std::pair<Float8TrainingTensor, Float8TrainingTensor> hp_tensor_to_float8_both_dims_cuda(
    const at::Tensor& x, const CastSpec& spec_dim1, const CastSpec& spec_dim0);

// How many codes of `cast`, made of x in x's layout, have the largest magnitude, and how many are
// zero where x is not. Waits for the GPU.
std::pair<int64_t, int64_t> count_losses_cuda(const at::Tensor& x,
                                              const Float8TrainingTensor& cast);

// The same matrix of codes in row-major order; itself if it is.
at::Tensor row_major_codes_cuda(const at::Tensor& codes);

}  // namespace narrowgauge::float8

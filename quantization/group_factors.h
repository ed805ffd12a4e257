#pragma once

#include <ATen/core/Tensor.h>

#include "quantization/quantization_spec.h"

// The scales of the grids that are a scale times a fixed set of values (all but
// kAffine), from the largest element of each group: what quantizing a tensor
// and fake-quantizing it have in common.
namespace narrowgauge::quantization {

// All of `largest`'s shape. Where largest is NaN or infinite, `after` is NaN or
// infinite.
struct GroupFactors {
  at::Tensor before;            // fp32: multiplies a value before it is rounded (kFloat8:
                                // divides it)
  at::Tensor after;             // fp32: what a code's value is multiplied by
  at::Tensor scale;             // what is stored: see QuantizedTensor
  at::Tensor outer_scale = {};  // kNvfp4: fp32 [1, 1]
};

// largest: [rows, groups], the element of largest magnitude of each group with
// its sign, in the dtype of the tensor that is quantized or exact in it.
GroupFactors group_factors(const at::Tensor& largest, const QuantizationSpec& spec,
                           c10::ScalarType dtype);

// `largest` of x.
at::Tensor largest_of_groups(const at::Tensor& x, const QuantizationSpec& spec);

}  // namespace narrowgauge::quantization

#pragma once

#include <ATen/core/Tensor.h>

namespace narrowgauge::comm {

// Integers in the order of floats, with NaN as the greatest of all: a maximum of keys is the key of
// the maximum, and it propagates NaN, which a device's own maximum of floats may drop.
//
// The keys of x, of x's shape: int32 for 16-bit floats and float32, int64 for float64. The bits of
// a float >= 0 are in order as they stand; those of a negative one are once the bits below the sign
// are inverted. -0 is smaller than 0.
at::Tensor max_keys(const at::Tensor& x);

// The floats behind keys that max_keys made of `dtype`.
at::Tensor from_max_keys(const at::Tensor& keys, at::ScalarType dtype);

}  // namespace narrowgauge::comm

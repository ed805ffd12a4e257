#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace narrowgauge::testing {

// Signal to quantization-noise ratio in dB: 20 log10(|reference| / |reference - x|), both in fp64;
// infinity when equal. Shapes must agree.
double sqnr_db(const at::Tensor& reference, const at::Tensor& x);

// Fails the running test unless dtype, shape and every bit agree; prints the first coordinate that
// differs with both values. Two NaNs of the same bits are equal, 0 and -0 are not.
void expect_bitwise_equal(const at::Tensor& actual, const at::Tensor& expected);

// Relative error allowed for a value that sums k products in fp32 and is rounded once to `dtype`:
// u(dtype) + (k + 8) u(fp32), u the unit roundoff (Higham 2002, section 3.1; 8 for the scalar
// functions around the sum).
double tolerance(at::ScalarType dtype, int64_t k);

// Fails the running test unless |actual - expected| <= tolerance * (|expected| + |magnitude|)
// everywhere; prints the worst coordinate. magnitude is what the error of a cancelling sum is
// relative to: the sum of its terms' absolute values, of expected's shape; without one, the root
// mean square of expected. NaN and infinities must agree exactly.
void expect_close(const at::Tensor& actual, const at::Tensor& expected, double tolerance,
                  const at::Tensor& magnitude = {});

}  // namespace narrowgauge::testing

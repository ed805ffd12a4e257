#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace narrowgauge::quantization {

// What calibration remembers of a linear's inputs: enough to know how far any change of its weight
// moves its outputs, |x (W - W')^T|^2 summed over all inputs, and how large each channel is.
class InputStatistics {
 public:
  static constexpr int64_t kMostSamples = 256;

  explicit InputStatistics(int64_t cols);

  // x: [..., cols], floating.
  void add(const at::Tensor& x);

  // Inputs divided by `factor` ([cols], positive), their channels multiplied into the weight.
  void divide(const at::Tensor& factor);

  int64_t num_rows() const { return num_rows_; }
  at::Tensor hessian() const;   // [cols, cols] fp32: mean of x^T x
  at::Tensor mean_abs() const;  // [cols] fp32
  at::Tensor max_abs() const { return max_abs_; }
  at::Tensor sample() const { return sample_; }  // the first rows, at most kMostSamples, fp32

  // Mean over inputs of |x E^T|^2 for a change E ([rows, cols]) of the weight.
  double output_error(const at::Tensor& change) const;

 private:
  int64_t num_rows_ = 0;
  at::Tensor products_;  // [cols, cols] fp64: sum of x^T x
  at::Tensor abs_sum_;   // [cols] fp64
  at::Tensor max_abs_;   // [cols] fp32
  at::Tensor sample_;    // [up to kMostSamples, cols] fp32
};

}  // namespace narrowgauge::quantization

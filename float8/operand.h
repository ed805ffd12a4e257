#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <limits>
#include <optional>

#include "float8/amax_history.h"
#include "float8/config.h"
#include "float8/float8_training_tensor.h"

namespace narrowgauge::float8 {

// What the casts of one operand lost in a sampled step. Elements are summed over the casts of the
// step, so that micro-batches and ranks can be added.
struct OperandHealth {
  double num_elements = 0;
  double num_saturated = 0;    // codes of the largest magnitude
  double num_underflowed = 0;  // zero codes of values that are not zero
  // Of the multipliers before the cast.
  double scale_min = std::numeric_limits<double>::infinity();
  double scale_max = 0;
};

// An operand in fp8 for the products that contract its dim 1 and its dim 0; `data` is undefined in
// the one that was not asked for or stays in high precision. Equal casts of one call share their
// tensors where a product can read both.
struct OperandCasts {
  Float8TrainingTensor dim1;
  Float8TrainingTensor dim0;
};

// One of the three operands of a linear, a matrix that is read by two products:
//   input        [tokens, in]   dim 1: output      dim 0: grad_weight
//   weight       [out, in]      dim 1: output      dim 0: grad_input
//   grad_output  [tokens, out]  dim 1: grad_input  dim 0: grad_weight
// It knows how it is cast and remembers what its casts have seen. Not thread-safe.
class Operand {
 public:
  Operand(const CastConfig& dim1, const CastConfig& dim0, int64_t amax_history_len,
          AmaxComputeAlgo algo);

  const CastConfig& dim1() const { return dim1_; }
  const CastConfig& dim0() const { return dim0_; }
  bool is_delayed() const { return history_.has_value(); }
  // Whether one cast serves both products.
  bool has_one_cast() const;

  // x: [rows, cols] bf16, fp16 or fp32. Casts for the dimensions wanted. training: its values count
  // for the history and the health of this step (validation and generation do not).
  OperandCasts cast(const at::Tensor& x, bool want_dim1, bool want_dim0, bool training);

  // One cast with a scale that the caller knows: the multiplier, shaped as tensor_to_amax has it.
  Float8TrainingTensor cast_with_scale(const at::Tensor& x, const at::Tensor& scale,
                                       const CastConfig& config, int64_t dim, bool training);

  // REQUIRES: is_delayed().
  AmaxHistory& history() { return *history_; }

  // Largest magnitude cast since the last call, fp32 []; undefined if there was none. Delayed only.
  at::Tensor take_amax();

  // From now on casts in training add to health().
  void set_sampling(bool sampling) { sampling_ = sampling; }
  OperandHealth take_health();

 private:
  at::Tensor delayed_scale(const at::Tensor& x, const CastConfig& config, int64_t dim) const;
  OperandCasts cast_both_delayed(const at::Tensor& x, bool training);
  Float8TrainingTensor cast_one(const at::Tensor& x, const CastConfig& config, int64_t dim,
                                bool training);
  void record_amax(const at::Tensor& amax);
  void sample(const at::Tensor& x, const Float8TrainingTensor& cast);

  CastConfig dim1_;
  CastConfig dim0_;
  std::optional<AmaxHistory> history_;
  at::Tensor amax_;
  bool sampling_ = false;
  OperandHealth health_;
};

}  // namespace narrowgauge::float8

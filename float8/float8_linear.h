#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "float8/config.h"
#include "float8/operand.h"
#include "float8/weight_gather.h"
#include "nn/linear.h"

namespace narrowgauge::float8 {

// What a Float8Linear shares with the autograd nodes of its calls and with whoever gathers its
// weight.
struct Float8LinearState {
  explicit Float8LinearState(const Float8LinearConfig& config);

  const Float8LinearConfig config;
  Operand input;
  Operand weight;
  Operand grad_output;
  // Where the weight is sharded: what holds its casts. Null: each forward casts the parameter.
  std::unique_ptr<WeightGather> gather;
};

// A Linear whose three products run in fp8, after torchao's class of this name. Where that saves
// its input in high precision and casts it again in backward, this one casts input for both of its
// products in forward and keeps the fp8 codes alone: see saved_bytes.
//
// Gradients pass a cast unchanged (straight-through): backward is that of y = x W^T + b with
// each product's operands in fp8. grad_bias is the sum of grad_output in high precision.
// Differentiable once. Inputs have any rank and may be empty; a product whose result nobody asked
// for (a frozen weight, an input without gradient) is not computed nor its operand saved.
class Float8Linear : public nn::Linear {
 public:
  // Shares weight and bias with `source`.
  Float8Linear(const nn::Linear& source, const Float8LinearConfig& config);

  const Float8LinearConfig& config() const { return state_->config; }
  Float8LinearState& state() { return *state_; }
  const std::shared_ptr<Float8LinearState>& shared_state() const { return state_; }

  // Whether the matrix that is cast is the parameter itself, so that a gather may bring its casts.
  virtual bool casts_its_parameter() const { return true; }

 protected:
  // forward with another matrix than the parameter, which it is differentiable in.
  at::Tensor multiply(const at::Tensor& x, const at::Tensor& matrix);
  at::Tensor forward(const at::Tensor& x) override;

 private:
  std::shared_ptr<Float8LinearState> state_;
};

// Bytes of its input that one forward of `tokens` rows keeps for backward. dtype: of the input.
struct SavedBytes {
  int64_t float8_linear = 0;
  int64_t linear = 0;  // nn::Linear: the input itself
};
SavedBytes saved_bytes(const Float8LinearConfig& config, const nn::LinearSpec& spec, int64_t tokens,
                       at::ScalarType dtype);

}  // namespace narrowgauge::float8

#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <utility>

#include "nn/linear.h"
#include "quantization/scheme.h"

namespace narrowgauge::qat {

// What a FakeQuantizedLinear shares with the autograd nodes of its calls and with whoever gathers
// its weight.
struct FakeQuantizedLinearState {
  explicit FakeQuantizedLinearState(quantization::Scheme scheme) : scheme(std::move(scheme)) {}

  const quantization::Scheme scheme;
  bool enabled = true;  // false: a plain linear

  // Where the weight is sharded: its values as forward reads them, and where its gradient stops
  // (see FakeQuantized), between unshard and reshard.
  bool is_gathered = false;
  bool gathered_enabled = false;  // whether `values` are fake-quantized
  at::Tensor values;
  at::Tensor clipped;
};

// A Linear that computes with the values its weight will have once it is quantized, and with inputs
// quantized as the runtime will, after torchao's class of this name.
//
// The input is fake-quantized in one pass that also makes the operand of the product, and that
// operand, not the input, is kept for the weight's gradient. The weight is fake-quantized once a
// step where it is sharded (see fsdp_extension.h), else in each forward. Gradients: see
// fake_quantize.h; those of both operands are products with the fake-quantized other one; grad_bias
// is the sum of grad_output. Differentiable once. Inputs have any rank and may be empty.
class FakeQuantizedLinear : public nn::Linear {
 public:
  // Shares weight and bias with `source`.
  FakeQuantizedLinear(const nn::Linear& source, quantization::Scheme scheme);

  const std::shared_ptr<FakeQuantizedLinearState>& shared_state() const { return state_; }
  const quantization::Scheme& scheme() const { return state_->scheme; }

  // Whether the weight that is quantized is the parameter itself, so that it may be quantized
  // before it is gathered.
  virtual bool reads_weight_alone() const { return true; }

  // At run time, between steps. Where the weight is gathered and its values cannot be had back
  // (see forward), the change counts from the next unshard on.
  void set_fake_quant_enabled(bool enabled) { state_->enabled = enabled; }

 protected:
  at::Tensor forward(const at::Tensor& x) override;

 private:
  std::shared_ptr<FakeQuantizedLinearState> state_;
};

// y = fq(x) fq(w)^T + bias with the gradients above, of any weight: what the class computes, for
// layers that make their weight themselves. x: [..., in]; weight: [out, in].
at::Tensor fake_quantized_linear(const at::Tensor& x, const at::Tensor& weight,
                                 const at::Tensor& bias,
                                 const std::shared_ptr<FakeQuantizedLinearState>& state);

}  // namespace narrowgauge::qat

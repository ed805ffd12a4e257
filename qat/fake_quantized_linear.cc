#include "qat/fake_quantized_linear.h"

#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <utility>
#include <vector>

#include "qat/fake_quantize.h"

namespace narrowgauge::qat {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

// Autograd's node keeps the state alive.
struct SharedState : torch::CustomClassHolder {
  explicit SharedState(std::shared_ptr<FakeQuantizedLinearState> state) : state(std::move(state)) {}
  std::shared_ptr<FakeQuantizedLinearState> state;
};

FakeQuantized input_of(const FakeQuantizedLinearState& state, const at::Tensor& x,
                       bool want_clipped) {
  if (!state.enabled || !state.scheme.activation) {
    return {x, {}};
  }
  return fake_quantize_with_clipped(x, *state.scheme.activation, x.scalar_type(), want_clipped);
}

FakeQuantized weight_of(FakeQuantizedLinearState& state, const at::Tensor& weight,
                        bool want_clipped) {
  if (!state.is_gathered) {
    return state.enabled ? fake_quantize_with_clipped(weight, state.scheme.weight,
                                                      weight.scalar_type(), want_clipped)
                         : FakeQuantized{weight, {}};
  }
  if (state.enabled && !state.gathered_enabled) {
    // Enabled since, and a frozen weight is not gathered anew for that.
    FakeQuantized result = fake_quantize_with_clipped(state.values, state.scheme.weight,
                                                      state.values.scalar_type(), true);
    state.values = std::move(result.values);
    state.clipped = std::move(result.clipped);
    state.gathered_enabled = true;
  }
  return {state.values, state.clipped};
}

struct FakeQuantizedLinearFunction : torch::autograd::Function<FakeQuantizedLinearFunction> {
  // x: [tokens, in]. weight: [out, in]; only its sizes and dtype are read where
  // it is gathered.
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& maybe_bias,
                            const std::shared_ptr<FakeQuantizedLinearState>& state) {
    const at::Tensor bias = maybe_bias.value_or(at::Tensor());
    const bool want_grad_input = x.requires_grad();
    const bool want_grad_weight = weight.requires_grad();
    const FakeQuantized input = input_of(*state, x, want_grad_input);
    const FakeQuantized weights = weight_of(*state, weight, want_grad_weight);
    // A gathered weight comes again for backward.
    const bool keep_weight = !state->is_gathered;
    context->save_for_backward({want_grad_weight ? input.values : at::Tensor(), input.clipped,
                                keep_weight && want_grad_input ? weights.values : at::Tensor(),
                                keep_weight ? weights.clipped : at::Tensor()});
    context->saved_data["state"] =
        at::IValue::make_capsule(c10::make_intrusive<SharedState>(state));
    context->saved_data["bias_dtype"] =
        bias.defined() && bias.requires_grad() ? static_cast<int64_t>(bias.scalar_type()) : -1;
    return at::linear(input.values, weights.values, bias);
  }

  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "expected a first derivative, got create_graph; FakeQuantizedLinear is "
                "differentiable once");
    const auto holder = context->saved_data["state"].toCapsule();
    FakeQuantizedLinearState& state = *static_cast<SharedState&>(*holder).state;
    const tensor_list saved = context->get_saved_variables();
    const FakeQuantized weights =
        state.is_gathered ? weight_of(state, saved[2], true) : FakeQuantized{saved[2], saved[3]};
    const at::Tensor& grad = grads[0];
    tensor_list result(4);
    if (context->needs_input_grad(0)) {
      result[0] = zero_clipped(at::mm(grad, weights.values), saved[1]);
    }
    if (context->needs_input_grad(1)) {
      result[1] = zero_clipped(at::mm(grad.t(), saved[0]), weights.clipped);
    }
    const int64_t bias_dtype = context->saved_data["bias_dtype"].toInt();
    if (bias_dtype >= 0) {
      result[2] = grad.sum(0, /*keepdim=*/false, static_cast<at::ScalarType>(bias_dtype));
    }
    return result;
  }
};

}  // namespace

at::Tensor fake_quantized_linear(const at::Tensor& x, const at::Tensor& weight,
                                 const at::Tensor& bias,
                                 const std::shared_ptr<FakeQuantizedLinearState>& state) {
  TORCH_CHECK(x.dim() >= 1 && x.size(-1) == weight.size(1), "expected [..., ", weight.size(1),
              "], got ", x.sizes());
  const at::Tensor matrix = x.reshape({-1, weight.size(1)});
  const bool training =
      c10::GradMode::is_enabled() &&
      (x.requires_grad() || weight.requires_grad() || (bias.defined() && bias.requires_grad()));
  at::Tensor y;
  if (training) {
    y = FakeQuantizedLinearFunction::apply(
        matrix, weight, bias.defined() ? std::optional(bias) : std::nullopt, state);
  } else {
    y = at::linear(input_of(*state, matrix, false).values, weight_of(*state, weight, false).values,
                   bias);
  }
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  return y.view(sizes);
}

FakeQuantizedLinear::FakeQuantizedLinear(const nn::Linear& source, quantization::Scheme scheme)
    : nn::Linear(source), state_(std::make_shared<FakeQuantizedLinearState>(std::move(scheme))) {}

at::Tensor FakeQuantizedLinear::forward(const at::Tensor& x) {
  return fake_quantized_linear(x, weight, bias, state_);
}

}  // namespace narrowgauge::qat

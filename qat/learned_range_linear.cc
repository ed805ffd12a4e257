#include "qat/learned_range_linear.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "qat/fake_quantize.h"

namespace narrowgauge::qat {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;
using State = std::shared_ptr<FakeQuantizedLinearState>;

struct SharedState : torch::CustomClassHolder {
  explicit SharedState(State state) : state(std::move(state)) {}
  State state;
};

std::optional<at::Tensor> optional(const at::Tensor& x) {
  return x.defined() ? std::optional(x) : std::nullopt;
}

struct LearnedRangeLinearFunction : torch::autograd::Function<LearnedRangeLinearFunction> {
  // x: [tokens, in], quantized already.
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& scale, const std::optional<at::Tensor>& zero_point,
                            const std::optional<at::Tensor>& bias, const State& state) {
    const LearnedRange range{scale, zero_point.value_or(at::Tensor())};
    const bool wants_weight = weight.requires_grad() || scale.requires_grad();
    context->save_for_backward(
        {wants_weight ? x : at::Tensor(), weight, range.scale, range.zero_point});
    context->saved_data["state"] =
        at::IValue::make_capsule(c10::make_intrusive<SharedState>(state));
    context->saved_data["bias_dtype"] =
        bias && bias->requires_grad() ? static_cast<int64_t>(bias->scalar_type()) : -1;
    return at::linear(x, fake_quantized_values(weight, range, state->scheme.weight), bias);
  }

  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "expected a first derivative, got create_graph; LearnedRangeLinear is "
                "differentiable once");
    const auto holder = context->saved_data["state"].toCapsule();
    const quantization::QuantizationSpec& spec =
        static_cast<SharedState&>(*holder).state->scheme.weight;
    const tensor_list saved = context->get_saved_variables();
    const LearnedRange range{saved[2], saved[3]};
    const at::Tensor& grad = grads[0];
    tensor_list result(6);
    if (context->needs_input_grad(0)) {
      result[0] = at::mm(grad, fake_quantized_values(saved[1], range, spec));
    }
    if (saved[0].defined()) {
      LearnedRangeGradients gradients =
          learned_range_gradients(at::mm(grad.t(), saved[0]), saved[1], range, spec);
      result[1] = std::move(gradients.weight);
      result[2] = std::move(gradients.range.scale);
      result[3] = std::move(gradients.range.zero_point);
    }
    const int64_t bias_dtype = context->saved_data["bias_dtype"].toInt();
    if (bias_dtype >= 0) {
      result[4] = grad.sum(0, /*keepdim=*/false, static_cast<at::ScalarType>(bias_dtype));
    }
    return result;
  }
};

}  // namespace

LearnedRangeLinear::LearnedRangeLinear(const nn::Linear& source, quantization::Scheme scheme)
    : FakeQuantizedLinear(source, std::move(scheme)) {
  const quantization::QuantizationSpec& spec = this->scheme().weight;
  const std::string obstacle = learned_range_obstacle(spec);
  TORCH_CHECK(obstacle.empty(), "expected a scheme whose ranges can be learned, got ",
              this->scheme().name, ": ", obstacle);
  const int64_t group = quantization::group_columns(spec, weight.size(1));
  const bool trains = weight.requires_grad();
  const auto make = [&] {
    return at::empty({weight.size(0), group == 0 ? 0 : weight.size(1) / group},
                     weight.options().requires_grad(false));
  };
  add_parameter(std::string(kScaleName), weight_scale, make());
  weight_scale.set_requires_grad(trains);
  if (has_zero_points(spec)) {
    add_parameter(std::string(kZeroPointName), weight_zero_point, make());
    weight_zero_point.set_requires_grad(trains);
  }
}

at::Tensor LearnedRangeLinear::forward(const at::Tensor& x) {
  const State& state = shared_state();
  if (!state->enabled) {
    return at::linear(x, weight, bias);
  }
  TORCH_CHECK(x.dim() >= 1 && x.size(-1) == weight.size(1), "expected [..., ", weight.size(1),
              "], got ", x.sizes());
  const at::Tensor matrix = x.reshape({-1, weight.size(1)});
  const auto& activation = state->scheme.activation;
  const at::Tensor input = activation ? qat::fake_quantize(matrix, *activation) : matrix;
  at::Tensor y;
  if (c10::GradMode::is_enabled()) {
    y = LearnedRangeLinearFunction::apply(input, weight, weight_scale, optional(weight_zero_point),
                                          optional(bias), state);
  } else {
    const LearnedRange range{weight_scale, weight_zero_point};
    y = at::linear(input, fake_quantized_values(weight, range, state->scheme.weight), bias);
  }
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  return y.view(sizes);
}

}  // namespace narrowgauge::qat

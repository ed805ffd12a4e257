#include "float8/float8_linear.h"

#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <c10/core/GradMode.h>
#include <c10/core/ScalarTypeToTypeMeta.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "float8/cast.h"
#include "float8/scaled_mm.h"

namespace narrowgauge::float8 {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

// Autograd's node keeps the state alive. The tensors it saves are, in this order, the input and the
// weight as backward reads them: {codes, inverse scale} each, or {high precision, undefined}.
struct SharedState : torch::CustomClassHolder {
  explicit SharedState(std::shared_ptr<Float8LinearState> state) : state(std::move(state)) {}
  std::shared_ptr<Float8LinearState> state;
};

bool is_disabled(const CastConfig& cast) { return cast.scaling_type == ScalingType::kDisabled; }

at::Tensor multiply(const Float8LinearConfig& config, const Float8GemmConfig& gemm,
                    const Float8TrainingTensor& a, const Float8TrainingTensor& b,
                    at::ScalarType dtype, const at::Tensor& bias = {}) {
  return config.emulate ? scaled_mm_reference(a, b, dtype, bias)
                        : scaled_mm(a, b, dtype, bias, gemm.use_fast_accum);
}

void save(tensor_list& saved, const Float8TrainingTensor& cast) {
  saved.push_back(cast.data);
  saved.push_back(cast.inverse_scale);
}

Float8TrainingTensor saved_cast(const tensor_list& saved, size_t at, const CastConfig& config) {
  return {saved[at], saved[at + 1], config.spec.granularity, 0, at::kFloat};
}

// The casts of the weight that forward reads, and backward if no gather will bring them again.
OperandCasts weight_for_forward(Float8LinearState& state, const at::Tensor& weight,
                                bool want_grad_input, bool training) {
  if (state.gather) {
    return {state.gather->dim1(), {}};
  }
  return state.weight.cast(weight, true, want_grad_input, training);
}

at::Tensor output_of(Float8LinearState& state, const at::Tensor& x, const OperandCasts& input,
                     const at::Tensor& weight, const OperandCasts& weight_casts,
                     const at::Tensor& bias) {
  if (is_disabled(state.config.cast_config_input)) {
    return at::linear(x, weight, bias);
  }
  return multiply(state.config, state.config.gemm_config_output, input.dim1, weight_casts.dim1,
                  x.scalar_type(), bias);
}

struct Float8LinearFunction : torch::autograd::Function<Float8LinearFunction> {
  // x: [tokens, in]. weight: [out, in]; only its sizes and dtype are read where it is gathered.
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& maybe_bias,
                            const std::shared_ptr<Float8LinearState>& state) {
    const at::Tensor bias = maybe_bias.value_or(at::Tensor());
    const Float8LinearConfig& config = state->config;
    const bool want_grad_input = x.requires_grad();
    const bool want_grad_weight = weight.requires_grad();
    const OperandCasts input = state->input.cast(x, true, want_grad_weight, /*training=*/true);
    const OperandCasts weight_casts =
        weight_for_forward(*state, weight, want_grad_input, /*training=*/true);
    tensor_list saved;
    if (want_grad_weight && is_disabled(config.cast_config_input_for_grad_weight)) {
      saved = {x, at::Tensor()};
    } else {
      save(saved, input.dim0);  // undefined if the weight is frozen
    }
    if (want_grad_input && is_disabled(config.cast_config_weight_for_grad_input)) {
      saved.insert(saved.end(), {weight, at::Tensor()});
    } else {
      save(saved, weight_casts.dim0);  // undefined if it is gathered
    }
    context->save_for_backward(std::move(saved));
    context->saved_data["state"] =
        at::IValue::make_capsule(c10::make_intrusive<SharedState>(state));
    context->saved_data["dtypes"] = std::vector<int64_t>{
        static_cast<int64_t>(x.scalar_type()), static_cast<int64_t>(weight.scalar_type()),
        bias.defined() && bias.requires_grad() ? static_cast<int64_t>(bias.scalar_type()) : -1};
    return output_of(*state, x, input, weight, weight_casts, bias);
  }

  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "expected a first derivative, got create_graph; Float8Linear is differentiable "
                "once");
    const auto holder = context->saved_data["state"].toCapsule();
    Float8LinearState& state = *static_cast<SharedState&>(*holder).state;
    const auto dtypes = context->saved_data["dtypes"].toIntVector();
    const tensor_list saved = context->get_saved_variables();
    const bool want_input = context->needs_input_grad(0);
    const bool want_weight = context->needs_input_grad(1);
    const at::Tensor& grad = grads[0];
    const OperandCasts grad_casts = state.grad_output.cast(grad, want_input, want_weight, true);
    tensor_list result(4);
    if (want_input) {
      result[0] =
          grad_input(state, grad, grad_casts, saved, static_cast<at::ScalarType>(dtypes[0]));
    }
    if (want_weight) {
      result[1] =
          grad_weight(state, grad, grad_casts, saved, static_cast<at::ScalarType>(dtypes[1]));
    }
    if (dtypes[2] >= 0) {
      result[2] = grad.sum(0, /*keepdim=*/false, static_cast<at::ScalarType>(dtypes[2]));
    }
    return result;
  }

 private:
  static at::Tensor grad_input(Float8LinearState& state, const at::Tensor& grad,
                               const OperandCasts& grad_casts, const tensor_list& saved,
                               at::ScalarType dtype) {
    const CastConfig& cast = state.config.cast_config_weight_for_grad_input;
    if (is_disabled(cast)) {
      return at::mm(grad, saved[2].to(grad.scalar_type())).to(dtype);
    }
    const Float8TrainingTensor weight =
        state.gather ? state.gather->dim0() : saved_cast(saved, 2, cast);
    return multiply(state.config, state.config.gemm_config_grad_input, grad_casts.dim1,
                    transpose(weight), dtype);
  }

  static at::Tensor grad_weight(Float8LinearState& state, const at::Tensor& grad,
                                const OperandCasts& grad_casts, const tensor_list& saved,
                                at::ScalarType dtype) {
    const CastConfig& cast = state.config.cast_config_input_for_grad_weight;
    if (is_disabled(cast)) {
      return at::mm(grad.t(), saved[0].to(grad.scalar_type())).to(dtype);
    }
    return multiply(state.config, state.config.gemm_config_grad_weight, transpose(grad_casts.dim0),
                    transpose(saved_cast(saved, 0, cast)), dtype);
  }
};

// Without gradients: nothing is saved, nor remembered for scales to come.
at::Tensor forward_only(Float8LinearState& state, const at::Tensor& x, const at::Tensor& weight,
                        const at::Tensor& bias) {
  const OperandCasts input = state.input.cast(x, true, false, /*training=*/false);
  const OperandCasts weight_casts = weight_for_forward(state, weight, false, /*training=*/false);
  return output_of(state, x, input, weight, weight_casts, bias);
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Scales of a matrix [rows, cols] that is cast for its dim 0.
int64_t num_scales(ScalingGranularity granularity, int64_t rows, int64_t cols) {
  const GroupShape group = group_shape(granularity, 0, {rows, cols});
  return ceil_div(rows, std::max<int64_t>(group.rows, 1)) *
         ceil_div(cols, std::max<int64_t>(group.cols, 1));
}

}  // namespace

Float8LinearState::Float8LinearState(const Float8LinearConfig& config)
    : config(config),
      input(config.cast_config_input, config.cast_config_input_for_grad_weight,
            config.amax_history_len, config.amax_compute_algo),
      weight(config.cast_config_weight, config.cast_config_weight_for_grad_input,
             config.amax_history_len, config.amax_compute_algo),
      grad_output(config.cast_config_grad_output, config.cast_config_grad_output_for_grad_weight,
                  config.amax_history_len, config.amax_compute_algo) {
  check_config(config);
}

Float8Linear::Float8Linear(const nn::Linear& source, const Float8LinearConfig& config)
    : nn::Linear(source), state_(std::make_shared<Float8LinearState>(config)) {}

at::Tensor Float8Linear::forward(const at::Tensor& x) { return multiply(x, weight); }

at::Tensor Float8Linear::multiply(const at::Tensor& x, const at::Tensor& matrix) {
  TORCH_CHECK(x.dim() >= 1 && x.size(-1) == spec.in_features, "expected [..., ", spec.in_features,
              "], got ", x.sizes());
  const at::Tensor input = x.reshape({-1, spec.in_features});
  const bool training =
      c10::GradMode::is_enabled() &&
      (x.requires_grad() || matrix.requires_grad() || (bias.defined() && bias.requires_grad()));
  const at::Tensor y =
      training ? Float8LinearFunction::apply(
                     input, matrix, bias.defined() ? std::optional(bias) : std::nullopt, state_)
               : forward_only(*state_, input, matrix, bias);
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = spec.out_features;
  return y.view(sizes);
}

SavedBytes saved_bytes(const Float8LinearConfig& config, const nn::LinearSpec& spec, int64_t tokens,
                       at::ScalarType dtype) {
  const auto element_size = static_cast<int64_t>(c10::elementSize(dtype));
  const int64_t in_hp = tokens * spec.in_features * element_size;
  const CastConfig& cast = config.cast_config_input_for_grad_weight;
  if (is_disabled(cast)) {
    return {in_hp, in_hp};
  }
  const int64_t scale_size = cast.spec.granularity == ScalingGranularity::kBlockwise1x32 ? 1 : 4;
  const int64_t scales = num_scales(cast.spec.granularity, tokens, spec.in_features);
  return {tokens * spec.in_features + scales * scale_size, in_hp};
}

}  // namespace narrowgauge::float8

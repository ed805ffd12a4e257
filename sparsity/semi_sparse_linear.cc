#include "sparsity/semi_sparse_linear.h"

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/record_function.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <memory>
#include <optional>
#include <vector>

namespace narrowgauge::sparsity {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

void refuse_second_derivative() {
  TORCH_CHECK(!at::GradMode::is_enabled(),
              "expected a first derivative, got create_graph; 2:4 linears are differentiable once");
}

// A bias that is missing has no number among the inputs: whether it wants a gradient is remembered.
void remember_bias(AutogradContext* context, const std::optional<at::Tensor>& bias) {
  context->saved_data["bias"] = bias.has_value() && bias->requires_grad();
}

at::Tensor bias_gradient(AutogradContext* context, const at::Tensor& grad) {
  return context->saved_data["bias"].toBool() ? grad.sum(0) : at::Tensor();
}

// The dense weight is saved, which is there anyway (a shard's storage comes and goes); the masked
// one is made again, one pass over it, instead of being kept from forward to backward.
struct MaskedLinear : torch::autograd::Function<MaskedLinear> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, const at::Tensor& mask,
                            bool is_masked, double decay) {
    RECORD_FUNCTION("narrowgauge::sparsity::MaskedLinear", c10::ArrayRef<const c10::IValue>());
    context->save_for_backward({x, weight, mask});
    context->saved_data["masked"] = is_masked;
    context->saved_data["decay"] = decay;
    remember_bias(context, bias);
    return at::linear(x, apply_mask(weight, mask), bias);
  }

  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    refuse_second_derivative();
    const tensor_list saved = context->get_saved_variables();
    const at::Tensor& x = saved[0];
    const at::Tensor& weight = saved[1];
    const at::Tensor& mask = saved[2];
    const at::Tensor& grad = grads[0];
    const double decay = context->saved_data["decay"].toDouble();
    const bool want_x = context->needs_input_grad(0);
    const bool want_weight = context->needs_input_grad(1);
    tensor_list result(6);
    if (want_x) {
      result[0] = at::mm(grad, apply_mask(weight, mask));
    }
    if (want_weight) {
      result[1] =
          weight_gradient(at::mm(grad.t(), x), weight, mask,
                          context->saved_data["masked"].toBool() ? GradientType::kMasked
                                                                 : GradientType::kStraightThrough,
                          decay);
    }
    result[2] = bias_gradient(context, grad);
    return result;
  }
};

struct MaskedActivation : torch::autograd::Function<MaskedActivation> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, int64_t algorithm) {
    RECORD_FUNCTION("narrowgauge::sparsity::MaskedActivation", c10::ArrayRef<const c10::IValue>());
    const int64_t tokens = x.size(0);
    const at::Tensor padded = at::constant_pad_nd(x, {0, 0, 0, (4 - tokens % 4) % 4});
    const SemiStructuredTensor packed =
        prune_and_compress(padded, static_cast<TileAlgorithm>(algorithm));
    context->save_for_backward({packed.values, packed.metadata, weight});
    remember_bias(context, bias);
    return at::linear(decompress(packed).narrow(0, 0, tokens), weight, bias);
  }

  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    refuse_second_derivative();
    const tensor_list saved = context->get_saved_variables();
    const at::Tensor& grad = grads[0];
    tensor_list result(4);
    if (context->needs_input_grad(0)) {
      result[0] = at::mm(grad, saved[2]);
    }
    if (context->needs_input_grad(1)) {
      const at::Tensor x = decompress({saved[0], saved[1]}).narrow(0, 0, grad.size(0));
      result[1] = at::mm(grad.t(), x);
    }
    result[2] = bias_gradient(context, grad);
    return result;
  }
};

at::Tensor as_matrix(const at::Tensor& x, int64_t in_features) {
  TORCH_CHECK(x.dim() >= 1 && x.size(-1) == in_features, "expected [..., ", in_features, "], got ",
              x.sizes());
  return x.reshape({-1, in_features});
}

at::Tensor with_sizes_of(const at::Tensor& y, const at::Tensor& x) {
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = y.size(1);
  return y.view(sizes);
}

std::optional<at::Tensor> optional_bias(const nn::Linear& linear) {
  return linear.bias.defined() ? std::optional(linear.bias) : std::nullopt;
}

}  // namespace

SemiSparseLinear::SemiSparseLinear(const nn::Linear& source, const SemiSparseOptions& options)
    : nn::Linear(source), SemiSparseMask(source.spec, options) {}

at::Tensor SemiSparseLinear::forward(const at::Tensor& x) {
  if (!is_sparse()) {
    return nn::Linear::forward(x);
  }
  const at::Tensor y = MaskedLinear::apply(
      as_matrix(x, spec.in_features), weight, optional_bias(*this), mask_of(weight),
      options.gradient == GradientType::kMasked, options.sr_ste_decay);
  return with_sizes_of(y, x);
}

SemiSparseActivationLinear::SemiSparseActivationLinear(const nn::Linear& source,
                                                       TileAlgorithm algorithm)
    : nn::Linear(source), algorithm(algorithm) {
  TORCH_CHECK(spec.in_features % 8 == 0, "expected in_features a multiple of 8, got ",
              spec.in_features, "; leave this linear dense");
}

at::Tensor SemiSparseActivationLinear::forward(const at::Tensor& x) {
  const at::Tensor y =
      MaskedActivation::apply(as_matrix(x, spec.in_features), weight, optional_bias(*this),
                              static_cast<int64_t>(algorithm));
  return with_sizes_of(y, x);
}

int64_t swap_linear_with_semi_sparse_linear(nn::Layer& root, const SemiSparseOptions& options,
                                            const nn::LinearFilter& filter) {
  return nn::swap_linear(
      root,
      [&](const nn::Linear& linear, std::string_view fqn) {
        return has_semi_structured_shape(linear.spec.out_features, linear.spec.in_features) &&
               (!filter || filter(linear, fqn));
      },
      [&](const nn::Linear& source) {
        return std::make_shared<SemiSparseLinear>(source, options);
      });
}

int64_t swap_semi_sparse_linear_with_linear(nn::Layer& root) {
  return nn::swap_linear(
      root,
      [](const nn::Linear& linear, std::string_view) {
        return dynamic_cast<const SemiSparseLinear*>(&linear) != nullptr;
      },
      [](const nn::Linear& source) { return std::make_shared<nn::Linear>(source); });
}

}  // namespace narrowgauge::sparsity

#include "sparsity/semi_sparse_mask.h"

#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

namespace narrowgauge::sparsity {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

struct MaskedWeight : torch::autograd::Function<MaskedWeight> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& weight,
                            const at::Tensor& mask, bool is_masked, double decay) {
    context->save_for_backward({decay == 0 ? at::Tensor() : weight, mask});
    context->saved_data["masked"] = is_masked;
    context->saved_data["decay"] = decay;
    return apply_mask(weight, mask);
  }

  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "expected a first derivative, got create_graph; 2:4 linears are differentiable "
                "once");
    const tensor_list saved = context->get_saved_variables();
    tensor_list result(4);
    // The gradient is the caller's: SR-STE adds to a copy.
    const double decay = context->saved_data["decay"].toDouble();
    result[0] =
        weight_gradient(decay == 0 ? grads[0] : grads[0].clone(), saved[0], saved[1],
                        context->saved_data["masked"].toBool() ? GradientType::kMasked
                                                               : GradientType::kStraightThrough,
                        decay);
    return result;
  }
};

}  // namespace

SemiSparseMask::SemiSparseMask(const nn::LinearSpec& spec, const SemiSparseOptions& options)
    : options(options), mask_(at::zeros({spec.out_features, spec.in_features / 8}, at::kByte)) {
  TORCH_CHECK(has_semi_structured_shape(spec.out_features, spec.in_features),
              "expected out_features a multiple of 4 and in_features of 8, got ", spec.out_features,
              " and ", spec.in_features, "; leave this linear dense");
}

const at::Tensor& SemiSparseMask::mask() const {
  if (device_mask_.defined()) {
    const at::NoGradGuard no_grad;
    mask_.copy_(device_mask_);
  }
  return mask_;
}

const at::Tensor& SemiSparseMask::mask_of(const at::Tensor& weight) {
  // A checkpoint of a run that was dense has no mask, and one of zeros would silence the layer.
  const bool has_mask = device_mask_.defined() || mask_.any().item<bool>();
  if (refresh_ || !has_mask) {
    const at::NoGradGuard no_grad;
    device_mask_ = semi_structured_mask(weight.detach(), options.algorithm);
    refresh_ = false;
  } else if (!device_mask_.defined()) {
    device_mask_ = mask_.to(weight.device(), mask_.scalar_type(), /*non_blocking=*/false,
                            /*copy=*/true);
  }
  return device_mask_;
}

at::Tensor SemiSparseMask::masked(const at::Tensor& weight) {
  return MaskedWeight::apply(weight, mask_of(weight), options.gradient == GradientType::kMasked,
                             options.sr_ste_decay);
}

at::Tensor weight_gradient(const at::Tensor& grad_masked, const at::Tensor& weight,
                           const at::Tensor& mask, GradientType gradient, double sr_ste_decay) {
  if (gradient == GradientType::kMasked) {
    return apply_mask(grad_masked, mask);
  }
  if (sr_ste_decay == 0) {
    return grad_masked;
  }
  return grad_masked.add_(weight, sr_ste_decay).sub_(apply_mask(weight, mask), sr_ste_decay);
}

}  // namespace narrowgauge::sparsity

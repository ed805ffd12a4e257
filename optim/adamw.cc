#include "optim/adamw.h"

#include <ATen/Parallel.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "cuda/launch_scope.h"
#include "optim/kernels/adamw.h"

namespace narrowgauge::optim {
namespace {

// A tensor is split at multiples of this many elements (a cache line); the threads' shares are
// therefore ends of a tensor only where it ends.
constexpr int64_t kElementsPerPiece = 2048;
constexpr int64_t kPiecesPerThread = 8;
static_assert(kElementsPerPiece % kernels::kAdamWLanes == 0);

void check_tensor(const at::Tensor& tensor, const std::string& what) {
  TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.is_contiguous(), "expected ", what,
              " to be contiguous fp32, got ", tensor.toString(), " with sizes ", tensor.sizes(),
              " and strides ", tensor.strides(),
              "; AdamW keeps fp32 parameters, lower precisions are made from them");
}

// As torch.optim does: scalars in fp64, rounded to fp32 once. The compiler of torch's kernel fused
// 1 - lr * weight_decay.
kernels::AdamWCoefficients coefficients_of(const AdamOptions& options, int64_t step, double lr,
                                           double weight_decay, double gradient_scale) {
  const auto t = static_cast<double>(step);
  const double correction1 = 1.0 - std::pow(options.beta1, t);
  const double correction2 = 1.0 - std::pow(options.beta2, t);
  kernels::AdamWCoefficients c;
  c.gradient_scale = static_cast<float>(gradient_scale);
  const double decay = options.decoupled_weight_decay ? weight_decay : 0.0;
  c.decay = static_cast<float>(std::fma(-lr, decay, 1.0));
  c.l2_decay = static_cast<float>(weight_decay - decay);
  c.grad_weight = static_cast<float>(1.0 - options.beta1);
  c.beta2 = static_cast<float>(options.beta2);
  c.grad_sq_weight = static_cast<float>(1.0 - options.beta2);
  c.correction_sqrt = static_cast<float>(std::sqrt(correction2));
  c.eps = static_cast<float>(options.eps);
  c.negative_step = static_cast<float>(-(lr / correction1));
  return c;
}

}  // namespace

AdamW::AdamW(std::vector<ParameterGroup> groups, AdamOptions options) : options_(options) {
  check_options(options_);
  for (GroupedParameter& parameter : flatten(std::move(groups))) {
    check_tensor(parameter.param, "parameter '" + parameter.name + "'");
    slots_.push_back({std::move(parameter), at::Tensor(), at::Tensor()});
  }
}

void AdamW::make_moments(Slot& slot) {
  if (!slot.exp_avg.defined()) {
    slot.exp_avg = at::zeros_like(slot.parameter.param.detach());
    slot.exp_avg_sq = at::zeros_like(slot.parameter.param.detach());
  }
}

void AdamW::step(double lr, double gradient_scale) {
  ++step_count_;
  // On a GPU all parameters go in few launches.
  std::vector<kernels::AdamWTensor> on_device;
  std::vector<at::Tensor> gradients;  // what on_device points into
  const GroupedParameter* first_on_device = nullptr;
  for (Slot& slot : slots_) {
    const GroupedParameter& parameter = slot.parameter;
    const at::Tensor& grad = parameter.param.grad();
    if (!grad.defined() || grad.numel() == 0) {
      continue;
    }
    // The kernel of a GPU reads narrow gradients as they are.
    const bool stays_narrow = grad.is_cuda() && grad.scalar_type() == at::kBFloat16;
    const at::Tensor gradient = (stays_narrow ? grad : grad.to(at::kFloat)).contiguous();
    TORCH_CHECK(gradient.sizes() == parameter.param.sizes(), "expected a gradient of '",
                parameter.name, "' with sizes ", parameter.param.sizes(), ", got ",
                gradient.sizes());
    make_moments(slot);
    if (parameter.param.is_cpu()) {
      step_on_cpu(slot, gradient, lr * parameter.lr_scale, gradient_scale);
    } else {
      on_device.push_back(device_update(slot, gradient, lr * parameter.lr_scale));
      gradients.push_back(gradient);
      first_on_device = first_on_device == nullptr ? &parameter : first_on_device;
      TORCH_CHECK(parameter.param.device() == first_on_device->param.device(),
                  "expected all parameters on one device, got '", parameter.name, "' on ",
                  parameter.param.device(), " and '", first_on_device->name, "' on ",
                  first_on_device->param.device());
    }
    parameter.param.unsafeGetTensorImpl()->bump_version();
  }
  if (first_on_device != nullptr) {
    const cuda::LaunchScope scope(first_on_device->param);
    kernels::adamw(on_device, coefficients_of(options_, step_count_, lr, 0.0, gradient_scale),
                   scope.stream());
  }
}

void AdamW::step_on_cpu(Slot& slot, const at::Tensor& gradient, double lr, double gradient_scale) {
  const auto c =
      coefficients_of(options_, step_count_, lr, slot.parameter.weight_decay, gradient_scale);
  auto* p = slot.parameter.param.mutable_data_ptr<float>();
  const auto* g = gradient.const_data_ptr<float>();
  auto* m = slot.exp_avg.mutable_data_ptr<float>();
  auto* v = slot.exp_avg_sq.mutable_data_ptr<float>();
  const int64_t count = slot.parameter.param.numel();
  const int64_t num_pieces = (count + kElementsPerPiece - 1) / kElementsPerPiece;
  at::parallel_for(0, num_pieces, kPiecesPerThread, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kElementsPerPiece;
    const int64_t end = std::min(count, last * kElementsPerPiece);
    kernels::adamw(p + begin, g + begin, m + begin, v + begin, end - begin, c);
  });
}

kernels::AdamWTensor AdamW::device_update(const Slot& slot, const at::Tensor& gradient,
                                          double lr) const {
  const at::Tensor& param = slot.parameter.param;
  const auto c = coefficients_of(options_, step_count_, lr, slot.parameter.weight_decay, 1.0);
  return {param.mutable_data_ptr<float>(),
          gradient.const_data_ptr(),
          slot.exp_avg.mutable_data_ptr<float>(),
          slot.exp_avg_sq.mutable_data_ptr<float>(),
          param.numel(),
          c.decay,
          c.l2_decay,
          c.negative_step,
          gradient.scalar_type() == at::kBFloat16};
}

void AdamW::zero_grad() {
  for (Slot& slot : slots_) {
    slot.parameter.param.mutable_grad() = at::Tensor();
  }
}

std::vector<StateTensor> AdamW::state() {
  std::vector<StateTensor> state;
  for (Slot& slot : slots_) {
    make_moments(slot);
    const auto& [name, param, shard, lr_scale, weight_decay] = slot.parameter;
    state.push_back({name + ".exp_avg", slot.exp_avg, shard.global_sizes, shard.row_begin});
    state.push_back({name + ".exp_avg_sq", slot.exp_avg_sq, shard.global_sizes, shard.row_begin});
  }
  return state;
}

void AdamW::set_step_count(int64_t count) {
  TORCH_CHECK(count >= 0, "expected a step count >= 0, got ", count);
  step_count_ = count;
}

}  // namespace narrowgauge::optim

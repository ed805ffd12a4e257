#include "optim/adamw.h"

#include <ATen/Parallel.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "cuda/launch_scope.h"
#include "optim/kernels/adamw.h"

namespace narrowgauge::optim {
namespace {

// A tensor is split at multiples of this many elements (a cache line); the threads' shares are
// therefore ends of a tensor only where it ends.
constexpr int64_t kElementsPerPiece = 2048;
constexpr int64_t kPiecesPerThread = 8;
static_assert(kElementsPerPiece % kernels::kAdamWLanes == 0);

void check_options(const AdamWOptions& options) {
  TORCH_CHECK(options.beta1 >= 0 && options.beta1 < 1, "expected 0 <= beta1 < 1, got ",
              options.beta1);
  TORCH_CHECK(options.beta2 >= 0 && options.beta2 < 1, "expected 0 <= beta2 < 1, got ",
              options.beta2);
  TORCH_CHECK(options.eps >= 0, "expected eps >= 0, got ", options.eps);
}

void check_tensor(const at::Tensor& tensor, const std::string& what) {
  TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.is_contiguous(), "expected ", what,
              " to be contiguous fp32, got ", tensor.toString(), " with sizes ", tensor.sizes(),
              " and strides ", tensor.strides(),
              "; AdamW keeps fp32 parameters, lower precisions are made from them");
}

// As torch.optim does: scalars in fp64, rounded to fp32 once. The compiler of torch's kernel fused
// 1 - lr * weight_decay.
kernels::AdamWCoefficients coefficients_of(const AdamWOptions& options, int64_t step, double lr,
                                           double weight_decay, double gradient_scale) {
  const auto t = static_cast<double>(step);
  const double correction1 = 1.0 - std::pow(options.beta1, t);
  const double correction2 = 1.0 - std::pow(options.beta2, t);
  kernels::AdamWCoefficients c;
  c.gradient_scale = static_cast<float>(gradient_scale);
  c.decay = static_cast<float>(std::fma(-lr, weight_decay, 1.0));
  c.grad_weight = static_cast<float>(1.0 - options.beta1);
  c.beta2 = static_cast<float>(options.beta2);
  c.grad_sq_weight = static_cast<float>(1.0 - options.beta2);
  c.correction_sqrt = static_cast<float>(std::sqrt(correction2));
  c.eps = static_cast<float>(options.eps);
  c.negative_step = static_cast<float>(-(lr / correction1));
  return c;
}

}  // namespace

AdamW::AdamW(std::vector<ParameterGroup> groups, AdamWOptions options) : options_(options) {
  check_options(options_);
  std::unordered_set<std::string> seen;
  for (ParameterGroup& group : groups) {
    TORCH_CHECK(group.names.size() == group.params.size(), "expected one name a parameter, got ",
                group.names.size(), " names and ", group.params.size(), " parameters");
    TORCH_CHECK(group.weight_decay >= 0, "expected weight_decay >= 0, got ", group.weight_decay);
    for (size_t i = 0; i < group.names.size(); ++i) {
      TORCH_CHECK(seen.insert(group.names[i]).second, "expected each parameter once, got '",
                  group.names[i], "' twice");
      check_tensor(group.params[i], "parameter '" + group.names[i] + "'");
      slots_.push_back({std::move(group.names[i]), std::move(group.params[i]), at::Tensor(),
                        at::Tensor(), group.lr_scale, group.weight_decay});
    }
  }
}

void AdamW::make_moments(Slot& slot) {
  if (!slot.exp_avg.defined()) {
    slot.exp_avg = at::zeros_like(slot.param.detach());
    slot.exp_avg_sq = at::zeros_like(slot.param.detach());
  }
}

void AdamW::step(double lr, double gradient_scale) {
  ++step_count_;
  // On a GPU all parameters go in few launches.
  std::vector<kernels::AdamWTensor> on_device;
  std::vector<at::Tensor> gradients;  // what on_device points into
  const Slot* first_on_device = nullptr;
  for (Slot& slot : slots_) {
    const at::Tensor& grad = slot.param.grad();
    if (!grad.defined() || grad.numel() == 0) {
      continue;
    }
    const at::Tensor gradient = grad.contiguous();
    check_tensor(gradient, "the gradient of '" + slot.name + "'");
    TORCH_CHECK(gradient.sizes() == slot.param.sizes(), "expected a gradient of '", slot.name,
                "' with sizes ", slot.param.sizes(), ", got ", gradient.sizes());
    make_moments(slot);
    if (slot.param.is_cpu()) {
      step_on_cpu(slot, gradient, lr * slot.lr_scale, gradient_scale);
    } else {
      on_device.push_back(device_update(slot, gradient, lr * slot.lr_scale));
      gradients.push_back(gradient);
      first_on_device = first_on_device == nullptr ? &slot : first_on_device;
      TORCH_CHECK(slot.param.device() == first_on_device->param.device(),
                  "expected all parameters on one device, got '", slot.name, "' on ",
                  slot.param.device(), " and '", first_on_device->name, "' on ",
                  first_on_device->param.device());
    }
    slot.param.unsafeGetTensorImpl()->bump_version();
  }
  if (first_on_device != nullptr) {
    const cuda::LaunchScope scope(first_on_device->param);
    kernels::adamw(on_device, coefficients_of(options_, step_count_, lr, 0.0, gradient_scale),
                   scope.stream());
  }
}

void AdamW::step_on_cpu(Slot& slot, const at::Tensor& gradient, double lr, double gradient_scale) {
  const auto c = coefficients_of(options_, step_count_, lr, slot.weight_decay, gradient_scale);
  auto* p = slot.param.mutable_data_ptr<float>();
  const auto* g = gradient.const_data_ptr<float>();
  auto* m = slot.exp_avg.mutable_data_ptr<float>();
  auto* v = slot.exp_avg_sq.mutable_data_ptr<float>();
  const int64_t count = slot.param.numel();
  const int64_t num_pieces = (count + kElementsPerPiece - 1) / kElementsPerPiece;
  at::parallel_for(0, num_pieces, kPiecesPerThread, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kElementsPerPiece;
    const int64_t end = std::min(count, last * kElementsPerPiece);
    kernels::adamw(p + begin, g + begin, m + begin, v + begin, end - begin, c);
  });
}

kernels::AdamWTensor AdamW::device_update(const Slot& slot, const at::Tensor& gradient,
                                          double lr) const {
  const auto c = coefficients_of(options_, step_count_, lr, slot.weight_decay, 1.0);
  return {slot.param.mutable_data_ptr<float>(),
          gradient.const_data_ptr<float>(),
          slot.exp_avg.mutable_data_ptr<float>(),
          slot.exp_avg_sq.mutable_data_ptr<float>(),
          slot.param.numel(),
          c.decay,
          c.negative_step};
}

void AdamW::zero_grad() {
  for (Slot& slot : slots_) {
    slot.param.mutable_grad() = at::Tensor();
  }
}

std::vector<std::pair<std::string, at::Tensor>> AdamW::state() {
  std::vector<std::pair<std::string, at::Tensor>> state;
  for (Slot& slot : slots_) {
    make_moments(slot);
    state.emplace_back(slot.name + ".exp_avg", slot.exp_avg);
    state.emplace_back(slot.name + ".exp_avg_sq", slot.exp_avg_sq);
  }
  return state;
}

void AdamW::set_step_count(int64_t count) {
  TORCH_CHECK(count >= 0, "expected a step count >= 0, got ", count);
  step_count_ = count;
}

}  // namespace narrowgauge::optim

#include "nn/rms_norm.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include "cuda/launch_scope.h"
#include "nn/kernel_dispatch.h"
#include "nn/kernels/rms_norm.h"
#include "nn/kernels/rms_norm_cuda.h"

namespace narrowgauge::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

// weight's gradient is a sum over rows: each block of rows has its own partial sum, and the
// partial sums are added in order. The blocks depend on the number of rows alone.
constexpr int64_t kMinRowsPerBlock = 64;
constexpr int64_t kMaxBlocks = 256;

void check_arguments(const at::Tensor& x, const at::Tensor& weight) {
  TORCH_CHECK(x.dim() >= 1 && weight.dim() == 1 && weight.size(0) == x.size(-1) && x.size(-1) > 0,
              "expected x of shape [..., dim] and weight of shape [dim], dim > 0, got ", x.sizes(),
              " and ", weight.sizes());
}

bool runs_kernel(const at::Tensor& x, const at::Tensor& weight) {
  return has_kernel(x) && weight.device() == x.device() && weight.scalar_type() != at::kDouble;
}

at::Tensor wide(const at::Tensor& weight) { return weight.to(at::kFloat).contiguous(); }

at::Tensor empty_rstd(const at::Tensor& x) {
  return at::empty({x.numel() / x.size(-1)}, x.options().dtype(at::kFloat));
}

struct Grads {
  at::Tensor x;
  at::Tensor weight;
};

Grads backward_on_cuda(const at::Tensor& grad_y, const at::Tensor& grad_h, const at::Tensor& x,
                       const at::Tensor& weight, const at::Tensor& rstd) {
  const cuda::LaunchScope scope(x);
  const int64_t dim = x.size(-1);
  const int64_t rows = rstd.numel();
  const at::Tensor partial =
      at::empty({kernels::rms_norm_backward_blocks(rows), dim}, rstd.options());
  const at::Tensor grad_x = at::empty_like(x);
  const at::Tensor grad_weight = at::empty({dim}, rstd.options());
  const at::Tensor w = wide(weight);
  with_element_type(x, [&](auto element) {
    using T = decltype(element);
    const at::Tensor gy = grad_y.contiguous();
    const at::Tensor gh = grad_h.defined() ? grad_h.contiguous() : grad_h;
    kernels::rms_norm_backward(const_pointer<T>(gy), gh.defined() ? const_pointer<T>(gh) : nullptr,
                               const_pointer<T>(x), w.const_data_ptr<float>(),
                               rstd.const_data_ptr<float>(), mutable_pointer<T>(grad_x),
                               grad_weight.mutable_data_ptr<float>(),
                               partial.mutable_data_ptr<float>(), rows, dim, scope.stream());
  });
  return {grad_x, grad_weight.to(weight.scalar_type())};
}

// grad_h may be undefined.
Grads backward_kernel(const at::Tensor& grad_y, const at::Tensor& grad_h, const at::Tensor& x,
                      const at::Tensor& weight, const at::Tensor& rstd) {
  TORCH_CHECK(!at::GradMode::is_enabled(),
              "expected a first derivative, got create_graph; rms_norm is differentiable once");
  if (x.is_cuda()) {
    return backward_on_cuda(grad_y, grad_h, x, weight, rstd);
  }
  const int64_t dim = x.size(-1);
  const int64_t rows = rstd.numel();
  const int64_t block_rows = std::max(kMinRowsPerBlock, (rows + kMaxBlocks - 1) / kMaxBlocks);
  const int64_t num_blocks = (rows + block_rows - 1) / block_rows;
  const at::Tensor partial = at::zeros({num_blocks, dim}, rstd.options());
  const at::Tensor grad_x = at::empty_like(x);
  const at::Tensor w = wide(weight);
  const auto* rstd_data = rstd.const_data_ptr<float>();
  auto* partial_data = partial.mutable_data_ptr<float>();
  with_element_type(x, [&](auto element) {
    using T = decltype(element);
    const at::Tensor gy = grad_y.contiguous();
    const at::Tensor gh = grad_h.defined() ? grad_h.contiguous() : grad_h;
    at::parallel_for(0, num_blocks, grain_rows(block_rows * dim), [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t row = block * block_rows;
        const int64_t at = row * dim;
        kernels::rms_norm_backward(
            const_pointer<T>(gy) + at, gh.defined() ? const_pointer<T>(gh) + at : nullptr,
            const_pointer<T>(x) + at, w.const_data_ptr<float>(), rstd_data + row,
            mutable_pointer<T>(grad_x) + at, partial_data + block * dim,
            std::min(block_rows, rows - row), dim);
      }
    });
  });
  const at::Tensor grad_weight = at::zeros({dim}, rstd.options());
  auto* sum = grad_weight.mutable_data_ptr<float>();
  for (int64_t block = 0; block < num_blocks; ++block) {
    for (int64_t i = 0; i < dim; ++i) {
      sum[i] += partial_data[block * dim + i];
    }
  }
  return {grad_x, grad_weight.to(weight.scalar_type())};
}

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight, double eps) {
    RECORD_FUNCTION("narrowgauge::nn::RmsNorm", c10::ArrayRef<const c10::IValue>());
    const at::Tensor x = input.contiguous();
    const at::Tensor y = at::empty_like(x);
    const at::Tensor rstd = empty_rstd(x);
    const at::Tensor w = wide(weight);
    const int64_t dim = x.size(-1);
    with_element_type(x, [&](auto element) {
      using T = decltype(element);
      if (x.is_cuda()) {
        const cuda::LaunchScope scope(x);
        kernels::rms_norm(const_pointer<T>(x), w.const_data_ptr<float>(), mutable_pointer<T>(y),
                          rstd.mutable_data_ptr<float>(), rstd.numel(), dim,
                          static_cast<float>(eps), scope.stream());
        return;
      }
      at::parallel_for(0, rstd.numel(), grain_rows(dim), [&](int64_t begin, int64_t end) {
        kernels::rms_norm(const_pointer<T>(x) + begin * dim, w.const_data_ptr<float>(),
                          mutable_pointer<T>(y) + begin * dim,
                          rstd.mutable_data_ptr<float>() + begin, end - begin, dim,
                          static_cast<float>(eps));
      });
    });
    context->save_for_backward({x, weight, rstd});
    return y;
  }

  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    const auto saved = context->get_saved_variables();
    const Grads grad = backward_kernel(grads[0], at::Tensor(), saved[0], saved[1], saved[2]);
    return {grad.x, grad.weight, at::Tensor()};
  }
};

struct AddRmsNorm : torch::autograd::Function<AddRmsNorm> {
  static tensor_list forward(AutogradContext* context, const at::Tensor& residual,
                             const at::Tensor& input, const at::Tensor& weight, double eps) {
    RECORD_FUNCTION("narrowgauge::nn::AddRmsNorm", c10::ArrayRef<const c10::IValue>());
    const at::Tensor r = residual.contiguous();
    const at::Tensor x = input.contiguous();
    const at::Tensor h = at::empty_like(x);
    const at::Tensor y = at::empty_like(x);
    const at::Tensor rstd = empty_rstd(x);
    const at::Tensor w = wide(weight);
    const int64_t dim = x.size(-1);
    with_element_type(x, [&](auto element) {
      using T = decltype(element);
      if (x.is_cuda()) {
        const cuda::LaunchScope scope(x);
        kernels::add_rms_norm(const_pointer<T>(r), const_pointer<T>(x), w.const_data_ptr<float>(),
                              mutable_pointer<T>(h), mutable_pointer<T>(y),
                              rstd.mutable_data_ptr<float>(), rstd.numel(), dim,
                              static_cast<float>(eps), scope.stream());
        return;
      }
      at::parallel_for(0, rstd.numel(), grain_rows(dim), [&](int64_t begin, int64_t end) {
        const int64_t at = begin * dim;
        kernels::add_rms_norm(const_pointer<T>(r) + at, const_pointer<T>(x) + at,
                              w.const_data_ptr<float>(), mutable_pointer<T>(h) + at,
                              mutable_pointer<T>(y) + at, rstd.mutable_data_ptr<float>() + begin,
                              end - begin, dim, static_cast<float>(eps));
      });
    });
    context->set_materialize_grads(false);
    context->save_for_backward({h, weight, rstd});
    return {h, y};
  }

  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    if (!grads[1].defined()) {
      return {grads[0], grads[0], at::Tensor(), at::Tensor()};
    }
    const auto saved = context->get_saved_variables();
    const Grads grad = backward_kernel(grads[1], grads[0], saved[0], saved[1], saved[2]);
    return {grad.x, grad.x, grad.weight, at::Tensor()};
  }
};

}  // namespace

at::Tensor rms_norm_reference(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const auto compute = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor wide_x = x.to(compute);
  const at::Tensor rstd = at::rsqrt(wide_x.square().mean(-1, /*keepdim=*/true).add(eps));
  return wide_x.mul(rstd).mul(weight.to(compute)).to(x.scalar_type());
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  check_arguments(x, weight);
  return runs_kernel(x, weight) ? RmsNorm::apply(x, weight, eps)
                                : rms_norm_reference(x, weight, eps);
}

std::pair<at::Tensor, at::Tensor> add_rms_norm(const at::Tensor& residual, const at::Tensor& x,
                                               const at::Tensor& weight, double eps) {
  check_arguments(x, weight);
  TORCH_CHECK(residual.sizes() == x.sizes() && residual.scalar_type() == x.scalar_type(),
              "expected residual and x of one shape and dtype, got ", residual.toString(), " ",
              residual.sizes(), " and ", x.toString(), " ", x.sizes());
  if (!runs_kernel(x, weight)) {
    const at::Tensor h = residual.add(x);
    return {h, rms_norm_reference(h, weight, eps)};
  }
  const tensor_list outputs = AddRmsNorm::apply(residual, x, weight, eps);
  return {outputs[0], outputs[1]};
}

}  // namespace narrowgauge::nn

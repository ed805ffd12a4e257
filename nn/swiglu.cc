#include "nn/swiglu.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/silu.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include "cuda/launch_scope.h"
#include "nn/kernel_dispatch.h"
#include "nn/kernels/swiglu.h"
#include "nn/kernels/swiglu_cuda.h"
#include "nn/known_amax.h"

namespace narrowgauge::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

// Undefined unless wanted.
at::Tensor empty_amax(const at::Tensor& like, bool wanted) {
  return wanted ? at::empty({}, like.options().dtype(at::kFloat)) : at::Tensor();
}

float* pointer_or_null(const at::Tensor& amax) {
  return amax.defined() ? amax.mutable_data_ptr<float>() : nullptr;
}

void publish(const at::Tensor& x, const at::Tensor& amax) {
  if (amax.defined()) {
    set_known_amax(x, amax);
  }
}

struct SwiGLU : torch::autograd::Function<SwiGLU> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, bool with_amax) {
    RECORD_FUNCTION("narrowgauge::nn::SwiGLU", c10::ArrayRef<const c10::IValue>());
    const at::Tensor gate_up = input.contiguous();
    const int64_t ffn = gate_up.size(-1) / 2;
    auto sizes = gate_up.sizes().vec();
    sizes.back() = ffn;
    const at::Tensor out = at::empty(sizes, gate_up.options());
    with_element_type(gate_up, [&](auto element) {
      using T = decltype(element);
      const int64_t rows = out.numel() / ffn;
      if (out.is_cuda()) {
        const cuda::LaunchScope scope(out);
        const at::Tensor amax = empty_amax(out, with_amax);
        kernels::swiglu(const_pointer<T>(gate_up), mutable_pointer<T>(out), rows, ffn,
                        pointer_or_null(amax), scope.stream());
        publish(out, amax);
        return;
      }
      at::parallel_for(0, rows, grain_rows(2 * ffn), [&](int64_t begin, int64_t end) {
        kernels::swiglu(const_pointer<T>(gate_up) + 2 * begin * ffn,
                        mutable_pointer<T>(out) + begin * ffn, end - begin, ffn);
      });
    });
    context->save_for_backward({gate_up});
    context->saved_data["with_amax"] = with_amax;
    return out;
  }

  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "expected a first derivative, got create_graph; swiglu is differentiable once");
    const at::Tensor gate_up = context->get_saved_variables()[0];
    const at::Tensor grad_out = grads[0].contiguous();
    const int64_t ffn = gate_up.size(-1) / 2;
    const at::Tensor grad = at::empty_like(gate_up);
    with_element_type(gate_up, [&](auto element) {
      using T = decltype(element);
      const int64_t rows = grad_out.numel() / ffn;
      if (grad.is_cuda()) {
        const cuda::LaunchScope scope(grad);
        const at::Tensor amax = empty_amax(grad, context->saved_data["with_amax"].toBool());
        kernels::swiglu_backward(const_pointer<T>(grad_out), const_pointer<T>(gate_up),
                                 mutable_pointer<T>(grad), rows, ffn, pointer_or_null(amax),
                                 scope.stream());
        publish(grad, amax);
        return;
      }
      at::parallel_for(0, rows, grain_rows(2 * ffn), [&](int64_t begin, int64_t end) {
        kernels::swiglu_backward(const_pointer<T>(grad_out) + begin * ffn,
                                 const_pointer<T>(gate_up) + 2 * begin * ffn,
                                 mutable_pointer<T>(grad) + 2 * begin * ffn, end - begin, ffn);
      });
    });
    return {grad, at::Tensor()};
  }
};

}  // namespace

at::Tensor swiglu_reference(const at::Tensor& gate_up) {
  const auto compute = gate_up.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto halves = gate_up.to(compute).chunk(2, -1);
  return at::silu(halves[0]).mul(halves[1]).to(gate_up.scalar_type());
}

at::Tensor swiglu(const at::Tensor& gate_up, bool with_amax) {
  TORCH_CHECK(gate_up.dim() >= 1 && gate_up.size(-1) > 0 && gate_up.size(-1) % 2 == 0,
              "expected [..., 2 * ffn] with ffn > 0, got ", gate_up.sizes());
  return has_kernel(gate_up) ? SwiGLU::apply(gate_up, with_amax) : swiglu_reference(gate_up);
}

}  // namespace narrowgauge::nn

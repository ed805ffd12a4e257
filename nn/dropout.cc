#include "nn/dropout.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cuda/launch_scope.h"
#include "nn/kernel_dispatch.h"
#include "nn/kernels/dropout.h"
#include "nn/kernels/dropout_cuda.h"
#include "vectorize/philox.h"

namespace narrowgauge::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

constexpr uint64_t kDropoutSalt = 0xd409;  // not the stream of a parameter's values or roundings

kernels::DropoutFactors factors_of(const DropoutMask& mask) {
  const double threshold =
      std::min(std::nearbyint(mask.p * 0x1p32), double{std::numeric_limits<uint32_t>::max()});
  const double kept = 1.0 / (1.0 - mask.p);
  const double less = mask.is_difference ? 1.0 : 0.0;
  return {mask.key, static_cast<uint64_t>(mask.step), static_cast<uint32_t>(threshold),
          static_cast<float>(-less), static_cast<float>(kept - less)};
}

// Autograd's node keeps it.
struct SavedMask : torch::CustomClassHolder {
  explicit SavedMask(const DropoutMask& mask) : mask(mask) {}
  const DropoutMask mask;
};

struct DropoutLinear : torch::autograd::Function<DropoutLinear> {
  // x: [tokens, in]
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const DropoutMask& mask) {
    context->save_for_backward({x, weight});
    context->saved_data["mask"] = at::IValue::make_capsule(c10::make_intrusive<SavedMask>(mask));
    return at::linear(dropout(x, mask), weight);
  }

  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "expected a first derivative, got create_graph; dropout_linear is differentiable "
                "once");
    const auto capsule = context->saved_data["mask"].toCapsule();
    const DropoutMask& mask = static_cast<SavedMask&>(*capsule).mask;
    const tensor_list saved = context->get_saved_variables();
    tensor_list result(3);
    if (context->needs_input_grad(0)) {
      result[0] = dropout(at::mm(grads[0], saved[1]), mask);
    }
    if (context->needs_input_grad(1)) {
      result[1] = at::mm(grads[0].t(), dropout(saved[0], mask));
    }
    return result;
  }
};

}  // namespace

uint64_t dropout_key(uint64_t seed, std::string_view name) {
  return vectorize::stream_key(name) ^ vectorize::mix_bits(seed + kDropoutSalt);
}

at::Tensor dropout(const at::Tensor& x, const DropoutMask& mask) {
  TORCH_CHECK(mask.p >= 0.0 && mask.p < 1.0, "expected dropout of at least 0 and below 1, got ",
              mask.p);
  TORCH_CHECK(mask.step >= 0 && mask.first_element >= 0,
              "expected a step and an element of at least 0, got ", mask.step, " and ",
              mask.first_element);
  TORCH_CHECK(has_kernel(x), "expected fp32 or bf16 on a CPU or a GPU, got ", x.toString());
  const kernels::DropoutFactors factors = factors_of(mask);
  const at::Tensor input = x.detach().contiguous();
  const at::Tensor out = at::empty_like(input);
  with_element_type(input, [&](auto element) {
    using T = decltype(element);
    if (input.is_cuda()) {
      const cuda::LaunchScope scope(input);
      kernels::dropout(const_pointer<T>(input), mutable_pointer<T>(out), mask.first_element,
                       input.numel(), factors, scope.stream());
      return;
    }
    at::parallel_for(0, input.numel(), grain_rows(1), [&](int64_t begin, int64_t end) {
      kernels::dropout(const_pointer<T>(input) + begin, mutable_pointer<T>(out) + begin,
                       mask.first_element + begin, end - begin, factors);
    });
  });
  return out;
}

at::Tensor dropout_linear(const at::Tensor& x, const at::Tensor& weight, const DropoutMask& mask) {
  TORCH_CHECK(x.dim() >= 1 && weight.dim() == 2 && x.size(-1) == weight.size(1),
              "expected [..., in] and [out, in], got ", x.sizes(), " and ", weight.sizes());
  const at::Tensor matrix = x.reshape({-1, weight.size(1)});
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  return DropoutLinear::apply(matrix, weight, mask).view(sizes);
}

}  // namespace narrowgauge::nn

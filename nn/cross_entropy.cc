#include "nn/cross_entropy.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include "cuda/launch_scope.h"
#include "nn/kernel_dispatch.h"
#include "nn/kernels/cross_entropy.h"
#include "nn/kernels/cross_entropy_cuda.h"

namespace narrowgauge::nn {
namespace {

void check_shapes(const at::Tensor& targets, int64_t rows) {
  TORCH_CHECK(targets.dim() == 1 && targets.size(0) == rows, "expected one target for each of ",
              rows, " rows, got ", targets.sizes());
  TORCH_CHECK(targets.scalar_type() == at::kLong, "expected int64 targets, got ",
              targets.scalar_type());
}

void check_arguments(const at::Tensor& logits, const at::Tensor& targets) {
  TORCH_CHECK(logits.dim() == 2, "expected logits of shape [N, V], got ", logits.sizes());
  check_shapes(targets, logits.size(0));
}

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

// The sum of the rows' losses; log_sum_exp: [rows] out.
at::Tensor forward_on_cuda(const at::Tensor& logits, const at::Tensor& targets,
                           const at::Tensor& log_sum_exp, int64_t ignore_index) {
  const cuda::LaunchScope scope(logits);
  const at::Tensor loss = at::empty_like(log_sum_exp);
  const at::Tensor sum = at::empty({}, log_sum_exp.options());
  with_element_type(logits, [&](auto element) {
    using T = decltype(element);
    kernels::cross_entropy(const_pointer<T>(logits), targets.const_data_ptr<int64_t>(),
                           log_sum_exp.mutable_data_ptr<float>(), loss.mutable_data_ptr<float>(),
                           logits.size(0), logits.size(1), ignore_index, scope.stream());
  });
  kernels::sum_loss(loss.const_data_ptr<float>(), sum.mutable_data_ptr<float>(), loss.numel(),
                    scope.stream());
  return sum;
}

// grad_loss stays on the device: reading it here would wait for everything before.
at::Tensor backward_on_cuda(const at::Tensor& logits, const at::Tensor& targets,
                            const at::Tensor& log_sum_exp, const at::Tensor& grad_loss,
                            int64_t ignore_index) {
  const cuda::LaunchScope scope(logits);
  const at::Tensor grad = at::empty_like(logits);
  const at::Tensor scale = grad_loss.to(at::kFloat);
  with_element_type(logits, [&](auto element) {
    using T = decltype(element);
    kernels::cross_entropy_backward(const_pointer<T>(logits), targets.const_data_ptr<int64_t>(),
                                    log_sum_exp.const_data_ptr<float>(),
                                    scale.const_data_ptr<float>(), mutable_pointer<T>(grad),
                                    logits.size(0), logits.size(1), ignore_index, scope.stream());
  });
  return grad;
}

struct CrossEntropySum : torch::autograd::Function<CrossEntropySum> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& targets, int64_t ignore_index) {
    RECORD_FUNCTION("narrowgauge::nn::CrossEntropySum", c10::ArrayRef<const c10::IValue>());
    const at::Tensor logits = input.contiguous();
    const int64_t rows = logits.size(0);
    const int64_t vocab = logits.size(1);
    const at::Tensor log_sum_exp = at::empty({rows}, logits.options().dtype(at::kFloat));
    context->save_for_backward({logits, targets, log_sum_exp});
    context->saved_data["ignore_index"] = ignore_index;
    if (logits.is_cuda()) {
      return forward_on_cuda(logits, targets, log_sum_exp, ignore_index);
    }
    const at::Tensor loss = at::empty_like(log_sum_exp);
    with_element_type(logits, [&](auto element) {
      using T = decltype(element);
      at::parallel_for(0, rows, grain_rows(vocab), [&](int64_t begin, int64_t end) {
        kernels::cross_entropy(
            const_pointer<T>(logits) + begin * vocab, targets.const_data_ptr<int64_t>() + begin,
            log_sum_exp.mutable_data_ptr<float>() + begin, loss.mutable_data_ptr<float>() + begin,
            end - begin, vocab, ignore_index);
      });
    });
    double sum = 0;
    for (int64_t row = 0; row < rows; ++row) {
      sum += loss.const_data_ptr<float>()[row];
    }
    return at::full({}, sum, log_sum_exp.options());
  }

  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "expected a first derivative, got create_graph; cross_entropy_sum is "
                "differentiable once");
    const auto saved = context->get_saved_variables();
    const at::Tensor& logits = saved[0];
    const int64_t vocab = logits.size(1);
    const int64_t ignore_index = context->saved_data["ignore_index"].toInt();
    if (logits.is_cuda()) {
      return {backward_on_cuda(logits, saved[1], saved[2], grads[0], ignore_index), at::Tensor(),
              at::Tensor()};
    }
    const auto grad_loss = grads[0].item<float>();
    const at::Tensor grad = at::empty_like(logits);
    with_element_type(logits, [&](auto element) {
      using T = decltype(element);
      at::parallel_for(0, logits.size(0), grain_rows(vocab), [&](int64_t begin, int64_t end) {
        kernels::cross_entropy_backward(
            const_pointer<T>(logits) + begin * vocab, saved[1].const_data_ptr<int64_t>() + begin,
            saved[2].const_data_ptr<float>() + begin, grad_loss,
            mutable_pointer<T>(grad) + begin * vocab, end - begin, vocab, ignore_index);
      });
    });
    return {grad, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

void check_targets(const at::Tensor& targets, int64_t rows, int64_t vocab, int64_t ignore_index) {
  check_shapes(targets, rows);
  const auto* target = targets.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows; ++i) {
    TORCH_CHECK(target[i] == ignore_index || (target[i] >= 0 && target[i] < vocab),
                "expected targets in [0, ", vocab, ") or ", ignore_index, ", got ", target[i],
                " at position ", i, "; is the vocabulary smaller than the tokenizer's?");
  }
}

at::Tensor cross_entropy_sum_reference(const at::Tensor& logits, const at::Tensor& targets,
                                       int64_t ignore_index) {
  check_arguments(logits, targets);
  const auto compute = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor wide = logits.to(compute);
  const at::Tensor valid = targets.ne(ignore_index);
  const at::Tensor index = at::where(valid, targets, 0).unsqueeze(1);
  const at::Tensor row = wide.logsumexp(1).sub(wide.gather(1, index).squeeze(1));
  return at::where(valid, row, at::zeros_like(row)).sum();
}

at::Tensor cross_entropy_sum(const at::Tensor& logits, const at::Tensor& targets,
                             int64_t ignore_index) {
  if (!has_kernel(logits)) {
    return cross_entropy_sum_reference(logits, targets, ignore_index);
  }
  check_arguments(logits, targets);
  TORCH_CHECK(targets.device() == logits.device(), "expected targets on ", logits.device(),
              ", got them on ", targets.device());
  const at::Tensor packed = targets.contiguous();
  if (packed.is_cpu()) {
    check_targets(packed, logits.size(0), logits.size(1), ignore_index);
  }
  return CrossEntropySum::apply(logits, packed, ignore_index);
}

}  // namespace narrowgauge::nn

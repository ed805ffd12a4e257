#include "nn/linear_cross_entropy.h"

#include <ATen/Parallel.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/record_function.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "nn/cross_entropy.h"
#include "nn/kernel_dispatch.h"
#include "nn/kernels/cross_entropy.h"
#include "nn/loss_chunk.h"

namespace narrowgauge::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

// The losses of a chunk's rows; with_gradient: logits become their gradient.
void chunk_loss(const at::Tensor& logits, const at::Tensor& targets, double scale,
                bool with_gradient, int64_t ignore_index, const at::Tensor& loss) {
  const int64_t vocab = logits.size(1);
  const auto* target = targets.const_data_ptr<int64_t>();
  auto* losses = loss.mutable_data_ptr<float>();
  with_element_type(logits, [&](auto element) {
    using T = decltype(element);
    at::parallel_for(0, logits.size(0), grain_rows(vocab), [&](int64_t begin, int64_t end) {
      T* rows = mutable_pointer<T>(logits) + begin * vocab;
      if (with_gradient) {
        kernels::cross_entropy_to_gradient(rows, target + begin, losses + begin,
                                           static_cast<float>(scale), end - begin, vocab,
                                           ignore_index);
      } else {
        kernels::cross_entropy_loss(rows, target + begin, losses + begin, end - begin, vocab,
                                    ignore_index);
      }
    });
  });
}

// What the chunks give together.
struct Sums {
  double loss = 0;
  at::Tensor grad_x;       // [N, dim]; undefined unless wanted
  at::Tensor grad_weight;  // [V, dim]; likewise. fp32 while there is more than one chunk
};

void add_weight_gradient(const at::Tensor& grad_logits, const at::Tensor& x, bool is_first,
                         bool is_last, at::Tensor& sum) {
  if (is_first) {
    const at::Tensor product = grad_logits.t().mm(x);
    sum = is_last ? product : product.to(at::kFloat);
  } else if (sum.scalar_type() == x.scalar_type()) {
    sum.addmm_(grad_logits.t(), x);
  } else {
    sum.add_(grad_logits.t().mm(x));
  }
}

Sums sum_chunks(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets,
                double scale, int64_t ignore_index, bool wants_x, bool wants_weight) {
  const int64_t rows = x.size(0);
  const int64_t chunk = std::min(rows, loss_chunk_rows(weight.size(0), x.element_size()));
  Sums sums;
  sums.grad_x = wants_x ? at::empty_like(x) : at::Tensor();
  const at::Tensor loss = at::empty({rows}, x.options().dtype(at::kFloat));
  at::Tensor buffer = at::empty({chunk, weight.size(0)}, x.options());
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t count = std::min(chunk, rows - begin);
    const at::Tensor x_rows = x.narrow(0, begin, count);
    at::Tensor logits = buffer.narrow(0, 0, count);
    at::mm_out(logits, x_rows, weight.t());
    chunk_loss(logits, targets.narrow(0, begin, count), scale, wants_x || wants_weight,
               ignore_index, loss.narrow(0, begin, count));
    if (wants_x) {
      at::Tensor grad_rows = sums.grad_x.narrow(0, begin, count);
      at::mm_out(grad_rows, logits, weight);
    }
    if (wants_weight) {
      add_weight_gradient(logits, x_rows, begin == 0, begin + count == rows, sums.grad_weight);
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    sums.loss += loss.const_data_ptr<float>()[row];
  }
  return sums;
}

// `grad` of a loss as that of `grad_loss` times the loss, in `dtype`.
at::Tensor times(const at::Tensor& grad, double grad_loss, at::ScalarType dtype) {
  return (grad_loss == 1.0 ? grad : grad.mul(grad_loss)).to(dtype);
}

struct LinearCrossEntropySum : torch::autograd::Function<LinearCrossEntropySum> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight, const at::Tensor& targets, double scale,
                            int64_t ignore_index, bool wants_x, bool wants_weight) {
    RECORD_FUNCTION("narrowgauge::nn::LinearCrossEntropySum", c10::ArrayRef<const c10::IValue>());
    const at::Tensor x = input.contiguous();
    const Sums sums = sum_chunks(x, weight, targets, scale, ignore_index, wants_x, wants_weight);
    context->save_for_backward({sums.grad_x, sums.grad_weight});
    context->saved_data["dtype"] = static_cast<int64_t>(x.scalar_type());
    return at::full({}, sums.loss * scale, x.options().dtype(at::kFloat));
  }

  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "expected a first derivative, got create_graph; linear_cross_entropy_sum is "
                "differentiable once");
    const auto saved = context->get_saved_variables();
    const auto dtype = static_cast<at::ScalarType>(context->saved_data["dtype"].toInt());
    const auto grad_loss = grads[0].item<double>();
    tensor_list result(7);
    for (size_t i = 0; i < saved.size(); ++i) {
      if (saved[i].defined()) {
        result[i] = times(saved[i], grad_loss, dtype);
      }
    }
    return result;
  }
};

bool wants_gradient(const at::Tensor& x) {
  return c10::GradMode::is_enabled() && x.requires_grad();
}

}  // namespace

at::Tensor linear_cross_entropy_sum(const at::Tensor& x, const at::Tensor& weight,
                                    const at::Tensor& targets, double scale, int64_t ignore_index) {
  if (!x.is_cpu() || !has_kernel(x) || x.size(0) == 0) {
    return cross_entropy_sum(at::linear(x, weight), targets, ignore_index).mul(scale);
  }
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1) &&
                  x.scalar_type() == weight.scalar_type(),
              "expected x [N, dim] and weight [V, dim] of one dtype, got ", x.toString(), " ",
              x.sizes(), " and ", weight.toString(), " ", weight.sizes());
  const at::Tensor packed = targets.contiguous();
  check_targets(packed, x.size(0), weight.size(0), ignore_index);
  return LinearCrossEntropySum::apply(x, weight, packed, scale, ignore_index, wants_gradient(x),
                                      wants_gradient(weight));
}

}  // namespace narrowgauge::nn

#include "nn/linear_distillation.h"

#include <ATen/Parallel.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <ATen/record_function.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "nn/cross_entropy.h"
#include "nn/kernel_dispatch.h"
#include "nn/kernels/distillation.h"
#include "nn/loss_chunk.h"

namespace narrowgauge::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

struct Arguments {
  at::Tensor targets;  // contiguous
  DistillationOptions options;
  double scale;
  int64_t ignore_index;
};

// The losses of rows are written and `logits` become their gradient.
void rows_to_gradient(const at::Tensor& logits, const at::Tensor& teacher,
                      const at::Tensor& targets, const Arguments& arguments,
                      const at::Tensor& loss) {
  const DistillationOptions& options = arguments.options;
  const kernels::DistillationTerms terms = {
      static_cast<float>(1.0 - options.weight), static_cast<float>(options.weight),
      static_cast<float>(options.temperature), static_cast<float>(arguments.scale)};
  const int64_t vocab = logits.size(1);
  const auto* target = targets.const_data_ptr<int64_t>();
  auto* losses = loss.mutable_data_ptr<float>();
  with_element_type(logits, [&](auto element) {
    using T = decltype(element);
    auto* student = mutable_pointer<T>(logits);
    const auto* other = const_pointer<T>(teacher);
    at::parallel_for(0, logits.size(0), grain_rows(vocab), [&](int64_t begin, int64_t end) {
      kernels::distillation_to_gradient(student + begin * vocab, other + begin * vocab,
                                        target + begin, losses + begin, terms, end - begin, vocab,
                                        arguments.ignore_index);
    });
  });
}

// The same in ATen operators.
void rows_to_gradient_reference(const at::Tensor& logits, const at::Tensor& teacher,
                                const at::Tensor& targets, const Arguments& arguments,
                                const at::Tensor& loss) {
  const double hard = 1.0 - arguments.options.weight;
  const double soft = arguments.options.weight;
  const double temperature = arguments.options.temperature;
  const at::Tensor z = logits.to(loss.scalar_type());
  const at::Tensor valid = targets.ne(arguments.ignore_index).unsqueeze(1);
  const at::Tensor index = at::where(valid, targets.unsqueeze(1), 0);
  const at::Tensor log_p = at::log_softmax(z, 1);
  const at::Tensor log_q = at::log_softmax(z.div(temperature), 1);
  const at::Tensor log_t = at::log_softmax(teacher.to(loss.scalar_type()).div(temperature), 1);
  const at::Tensor t = log_t.exp();
  const at::Tensor zero = at::zeros_like(z.narrow(1, 0, 1));
  const at::Tensor kl =
      at::where(t.eq(0), at::zeros_like(t), t.mul(log_t.sub(log_q))).sum({1}, /*keepdim=*/true);
  const at::Tensor of_row =
      kl.mul(soft * temperature * temperature).sub(log_p.gather(1, index), hard);
  loss.copy_(at::where(valid, of_row, zero).squeeze(1));
  at::Tensor grad = log_p.exp().mul_(hard);
  grad.scatter_add_(1, index, at::zeros_like(zero).sub_(hard));
  grad.add_(log_q.exp().sub_(t), soft * temperature).mul_(arguments.scale);
  logits.copy_(at::where(valid, grad, zero));
}

at::ScalarType loss_dtype(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// A rank's rows in chunks: logits of both models for some of them, losses, gradients.
class Chunks {
 public:
  Chunks(const TeacherHead& teacher, const Arguments& arguments, int64_t rows)
      : teacher_(teacher), arguments_(arguments), rows_(rows) {
    const int64_t vocab = teacher.weight.size(0);
    size_ = std::min(rows, loss_chunk_rows(vocab, teacher.x.element_size()));
    of_teacher_ = at::empty({size_, vocab}, teacher.x.options());
    losses_ = at::empty({rows}, teacher.x.options().dtype(loss_dtype(teacher.x)));
  }

  int64_t size() const { return size_; }

  // Calls body(begin, count) for each chunk.
  template <typename Body>
  void for_each(const Body& body) const {
    for (int64_t begin = 0; begin < rows_; begin += size_) {
      body(begin, std::min(size_, rows_ - begin));
    }
  }

  // logits: [count, V] of the rows from `begin` on; they become their gradient.
  void to_gradient(const at::Tensor& logits, int64_t begin, int64_t count) const {
    at::Tensor teacher = of_teacher_.narrow(0, 0, count);
    at::mm_out(teacher, teacher_.x.narrow(0, begin, count), teacher_.weight.t());
    const at::Tensor targets = arguments_.targets.narrow(0, begin, count);
    const at::Tensor losses = losses_.narrow(0, begin, count);
    if (logits.is_cpu() && has_kernel(logits)) {
      rows_to_gradient(logits, teacher, targets, arguments_, losses);
    } else {
      rows_to_gradient_reference(logits, teacher, targets, arguments_, losses);
    }
  }

  // Summed in fp64, in a fixed order on the CPU.
  at::Tensor loss() const {
    return losses_.sum(at::kDouble).mul(arguments_.scale).to(losses_.scalar_type());
  }

 private:
  const TeacherHead& teacher_;
  const Arguments& arguments_;
  const int64_t rows_;
  int64_t size_;
  at::Tensor of_teacher_;
  at::Tensor losses_;
};

// `grad` of the loss as that of `grad_loss` times it.
at::Tensor times(const at::Tensor& grad, const at::Tensor& grad_loss, at::ScalarType dtype) {
  if (grad_loss.is_cpu() && grad_loss.item<double>() == 1.0) {
    return grad.to(dtype);
  }
  return grad.mul(grad_loss.to(loss_dtype(grad))).to(dtype);
}

tensor_list times_saved(AutogradContext* context, const at::Tensor& grad_loss, size_t num_inputs) {
  TORCH_CHECK(!at::GradMode::is_enabled(),
              "expected a first derivative, got create_graph; distillation is differentiable once");
  const auto dtype = static_cast<at::ScalarType>(context->saved_data["dtype"].toInt());
  const auto saved = context->get_saved_variables();
  tensor_list result(num_inputs);
  for (size_t i = 0; i < saved.size(); ++i) {
    if (saved[i].defined()) {
      result[i] = times(saved[i], grad_loss, dtype);
    }
  }
  return result;
}

struct LinearDistillationSum : torch::autograd::Function<LinearDistillationSum> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight, const TeacherHead& teacher,
                            const Arguments& arguments) {
    RECORD_FUNCTION("narrowgauge::nn::LinearDistillationSum", c10::ArrayRef<const c10::IValue>());
    const at::Tensor x = input.contiguous();
    const bool wants_x = input.requires_grad();
    const bool wants_weight = weight.requires_grad();
    const Chunks chunks(teacher, arguments, x.size(0));
    const at::Tensor buffer = at::empty({chunks.size(), weight.size(0)}, x.options());
    const bool one_chunk = chunks.size() == x.size(0);
    at::Tensor grad_x = wants_x ? at::empty_like(x) : at::Tensor();
    at::Tensor grad_weight;
    chunks.for_each([&](int64_t begin, int64_t count) {
      at::Tensor logits = buffer.narrow(0, 0, count);
      const at::Tensor rows = x.narrow(0, begin, count);
      at::mm_out(logits, rows, weight.t());
      chunks.to_gradient(logits, begin, count);
      if (wants_x) {
        at::Tensor grad_rows = grad_x.narrow(0, begin, count);
        at::mm_out(grad_rows, logits, weight);
      }
      if (wants_weight) {
        const at::Tensor product = logits.t().mm(rows);
        grad_weight = grad_weight.defined() ? grad_weight.add_(product)
                      : one_chunk           ? product
                                            : product.to(loss_dtype(x));
      }
    });
    context->save_for_backward({grad_x, grad_weight});
    context->saved_data["dtype"] = static_cast<int64_t>(x.scalar_type());
    return chunks.loss();
  }

  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    return times_saved(context, grads[0], 4);
  }
};

struct DistillationSum : torch::autograd::Function<DistillationSum> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const TeacherHead& teacher, const Arguments& arguments) {
    const at::Tensor grad = input.clone(at::MemoryFormat::Contiguous);
    const Chunks chunks(teacher, arguments, grad.size(0));
    chunks.for_each([&](int64_t begin, int64_t count) {
      chunks.to_gradient(grad.narrow(0, begin, count), begin, count);
    });
    context->save_for_backward({grad});
    context->saved_data["dtype"] = static_cast<int64_t>(input.scalar_type());
    return chunks.loss();
  }

  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    return times_saved(context, grads[0], 3);
  }
};

Arguments check(int64_t rows, int64_t vocab, at::ScalarType dtype, const TeacherHead& teacher,
                const at::Tensor& targets, const DistillationOptions& options, double scale,
                int64_t ignore_index) {
  TORCH_CHECK(options.weight >= 0 && options.weight <= 1 && options.temperature > 0,
              "expected a weight in [0, 1] and a temperature above 0, got ", options.weight,
              " and ", options.temperature);
  TORCH_CHECK(teacher.x.dim() == 2 && teacher.weight.dim() == 2 && teacher.x.size(0) == rows &&
                  teacher.weight.size(0) == vocab && teacher.x.size(1) == teacher.weight.size(1),
              "expected a teacher of ", rows, " rows and ", vocab, " tokens, got ",
              teacher.x.sizes(), " and ", teacher.weight.sizes());
  TORCH_CHECK(teacher.x.scalar_type() == dtype && teacher.weight.scalar_type() == dtype,
              "expected a teacher in ", dtype, ", got ", teacher.x.scalar_type(), " and ",
              teacher.weight.scalar_type());
  Arguments arguments{targets.contiguous(), options, scale, ignore_index};
  if (targets.is_cpu()) {
    check_targets(arguments.targets, rows, vocab, ignore_index);
  }
  return arguments;
}

}  // namespace

at::Tensor linear_distillation_sum(const at::Tensor& x, const at::Tensor& weight,
                                   const TeacherHead& teacher, const at::Tensor& targets,
                                   const DistillationOptions& options, double scale,
                                   int64_t ignore_index) {
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1) &&
                  x.scalar_type() == weight.scalar_type(),
              "expected x [N, dim] and weight [V, dim] of one dtype, got ", x.toString(), " ",
              x.sizes(), " and ", weight.toString(), " ", weight.sizes());
  const Arguments arguments = check(x.size(0), weight.size(0), x.scalar_type(), teacher, targets,
                                    options, scale, ignore_index);
  if (x.size(0) == 0) {
    return x.sum().mul(0).to(loss_dtype(x));
  }
  return LinearDistillationSum::apply(x, weight, teacher, arguments);
}

at::Tensor distillation_sum(const at::Tensor& logits, const TeacherHead& teacher,
                            const at::Tensor& targets, const DistillationOptions& options,
                            double scale, int64_t ignore_index) {
  TORCH_CHECK(logits.dim() == 2, "expected logits of shape [N, V], got ", logits.sizes());
  const Arguments arguments = check(logits.size(0), logits.size(1), logits.scalar_type(), teacher,
                                    targets, options, scale, ignore_index);
  if (logits.size(0) == 0) {
    return logits.sum().mul(0).to(loss_dtype(logits));
  }
  return DistillationSum::apply(logits, teacher, arguments);
}

}  // namespace narrowgauge::nn

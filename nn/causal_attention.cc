#include "nn/causal_attention.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <limits>
#include <type_traits>

#include "nn/kernel_dispatch.h"
#include "nn/kernels/attention.h"

namespace narrowgauge::nn {
namespace {

using kernels::AttentionKernel;
using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

template <typename T>
AttentionKernel<T> choose_kernel(AttentionInstructions instructions) {
  if constexpr (std::is_same_v<T, float>) {
    return kernels::portable_attention_float();
  } else {
    return instructions == AttentionInstructions::kBest && kernels::has_avx512_attention()
               ? kernels::avx512_attention()
               : kernels::portable_attention_bf16();
  }
}

// Floats for each thread of a parallel_for.
class Scratch {
 public:
  explicit Scratch(int64_t size)
      : stride_((size + kLine - 1) / kLine * kLine),
        memory_(at::empty({at::get_num_threads(), stride_}, at::kFloat)) {}
  float* of_this_thread() const {
    return memory_.mutable_data_ptr<float>() + at::get_thread_num() * stride_;
  }

 private:
  static constexpr int64_t kLine = 16;  // floats of a cache line

  int64_t stride_;
  at::Tensor memory_;
};

// A call's tensors, contiguous.
struct Operands {
  at::Tensor qkv;
  at::Tensor cos;  // [T, D / 2]
  at::Tensor sin;
  kernels::AttentionShape shape;
  AttentionInstructions instructions;

  template <typename T>
  kernels::AttentionInput<T> input() const {
    return {const_pointer<T>(qkv), cos.const_data_ptr<float>(), sin.const_data_ptr<float>(), shape};
  }
};

void attend(const Operands& operands, const at::Tensor& out, const at::Tensor& log_sum_exp) {
  with_element_type(operands.qkv, [&](auto element) {
    using T = decltype(element);
    const AttentionKernel<T> kernel = choose_kernel<T>(operands.instructions);
    const kernels::AttentionShape& shape = operands.shape;
    const kernels::AttentionInput<T> input = operands.input<T>();
    const at::Tensor packed = at::empty({kernel.packed_size(shape)}, at::kFloat);
    at::parallel_for(0, shape.batch * shape.num_kv_heads, 1, [&](int64_t begin, int64_t end) {
      kernel.pack_keys_values(input, packed.mutable_data_ptr<float>(), begin, end);
    });
    const Scratch scratch(kernel.forward_scratch_size(shape));
    at::parallel_for(0, shape.batch * shape.num_heads * shape.num_query_blocks(), 1,
                     [&](int64_t begin, int64_t end) {
                       kernel.forward(input, packed.const_data_ptr<float>(),
                                      mutable_pointer<T>(out),
                                      log_sum_exp.mutable_data_ptr<float>(),
                                      scratch.of_this_thread(), begin, end);
                     });
  });
}

void differentiate(const Operands& operands, const at::Tensor& out, const at::Tensor& log_sum_exp,
                   const at::Tensor& grad_out, const at::Tensor& grad_qkv) {
  with_element_type(operands.qkv, [&](auto element) {
    using T = decltype(element);
    const AttentionKernel<T> kernel = choose_kernel<T>(operands.instructions);
    const kernels::AttentionShape& shape = operands.shape;
    const kernels::AttentionGradients<T> gradients{
        const_pointer<T>(out), log_sum_exp.const_data_ptr<float>(), const_pointer<T>(grad_out),
        mutable_pointer<T>(grad_qkv)};
    const Scratch scratch(kernel.backward_scratch_size(shape));
    at::parallel_for(0, shape.batch * shape.num_kv_heads, 1, [&](int64_t begin, int64_t end) {
      kernel.backward(operands.input<T>(), gradients, scratch.of_this_thread(), begin, end);
    });
  });
}

struct CausalAttention : torch::autograd::Function<CausalAttention> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& qkv, const at::Tensor& cos,
                            const at::Tensor& sin, int64_t num_heads, int64_t num_kv_heads,
                            AttentionInstructions instructions) {
    const Operands operands{qkv.contiguous(),
                            cos,
                            sin,
                            {qkv.size(0), qkv.size(1), num_heads, num_kv_heads, 2 * cos.size(1)},
                            instructions};
    const kernels::AttentionShape& shape = operands.shape;
    const at::Tensor out = at::empty({shape.batch, shape.length, shape.out_row()}, qkv.options());
    const at::Tensor log_sum_exp =
        at::empty({shape.batch, shape.num_heads, shape.length}, qkv.options().dtype(at::kFloat));
    attend(operands, out, log_sum_exp);
    context->save_for_backward({operands.qkv, cos, sin, out, log_sum_exp});
    context->saved_data["num_heads"] = num_heads;
    context->saved_data["num_kv_heads"] = num_kv_heads;
    context->saved_data["instructions"] = static_cast<int64_t>(instructions);
    return out;
  }

  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "expected a first derivative, got create_graph; causal_attention is "
                "differentiable once");
    const auto saved = context->get_saved_variables();
    const at::Tensor& qkv = saved[0];
    const Operands operands{
        qkv,
        saved[1],
        saved[2],
        {qkv.size(0), qkv.size(1), context->saved_data["num_heads"].toInt(),
         context->saved_data["num_kv_heads"].toInt(), 2 * saved[1].size(1)},
        static_cast<AttentionInstructions>(context->saved_data["instructions"].toInt())};
    const at::Tensor grad_qkv = at::empty_like(qkv);
    differentiate(operands, saved[3], saved[4], grads[0].contiguous(), grad_qkv);
    return {grad_qkv, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

at::Tensor attend_in_parts(const at::Tensor& qkv, const RotaryTable& table, HeadCounts heads,
                           const QKNorm& norm) {
  const auto [q, k, v] = split_qkv_rope(qkv, table, 0, heads, norm);
  return at::scaled_dot_product_attention(q, k, v, /*attn_mask=*/std::nullopt, /*dropout_p=*/0.0,
                                          /*is_causal=*/true, /*scale=*/std::nullopt,
                                          /*enable_gqa=*/heads.num_heads != heads.num_kv_heads)
      .transpose(1, 2)
      .flatten(2);
}

}  // namespace

at::Tensor causal_attention_reference(const at::Tensor& qkv, const RotaryTable& table,
                                      HeadCounts heads, const QKNorm& norm) {
  const auto [q, k, v] = split_qkv_rope_reference(qkv, table, 0, heads, norm);
  const auto compute = qkv.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t group = heads.num_heads / heads.num_kv_heads;
  const int64_t length = qkv.size(1);
  const at::Tensor keys = k.to(compute).repeat_interleave(group, 1);
  const at::Tensor values = v.to(compute).repeat_interleave(group, 1);
  const at::Tensor scores = at::matmul(q.to(compute), keys.transpose(-1, -2))
                                .div(std::sqrt(static_cast<double>(q.size(-1))));
  const at::Tensor hidden = at::ones({length, length}, qkv.options().dtype(at::kBool)).triu(1);
  return at::matmul(
             scores.masked_fill(hidden, -std::numeric_limits<double>::infinity()).softmax(-1),
             values)
      .transpose(1, 2)
      .flatten(2)
      .to(qkv.scalar_type());
}

at::Tensor causal_attention(const at::Tensor& qkv, const RotaryTable& table, HeadCounts heads,
                            const QKNorm& norm, AttentionInstructions instructions) {
  check_qkv(qkv, table, 0, heads, norm);
  TORCH_CHECK(heads.num_heads % heads.num_kv_heads == 0,
              "expected query heads in equal groups, got ", heads.num_heads, " for ",
              heads.num_kv_heads, " key/value heads");
  const int64_t head_dim = 2 * table.cos.size(1);
  if (!qkv.is_cpu() || !has_kernel(qkv) || head_dim > kernels::kMaxAttentionHeadDim) {
    return attend_in_parts(qkv, table, heads, norm);
  }
  const int64_t length = qkv.size(1);
  return CausalAttention::apply(norm.q_weight.defined() ? normalize_heads(qkv, heads, norm) : qkv,
                                table.cos.narrow(0, 0, length), table.sin.narrow(0, 0, length),
                                heads.num_heads, heads.num_kv_heads, instructions);
}

}  // namespace narrowgauge::nn

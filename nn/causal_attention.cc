#include "nn/causal_attention.h"

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

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

// A part of a call that the kernel takes as a call of its own: the whole, or one document.
struct Part {
  int64_t first_token = 0;  // over the rows one after another
  kernels::AttentionShape shape;

  template <typename T>
  T* of_qkv(T* all) const {
    return all + first_token * shape.qkv_row();
  }
  template <typename T>
  T* of_out(T* all) const {
    return all + first_token * shape.out_row();
  }
  template <typename T>
  T* of_log_sum_exp(T* all) const {
    return all + first_token * shape.num_heads;
  }
};

// Documents of `shape`, see cu_seqlens; undefined: all in one.
std::vector<Part> parts_of(const kernels::AttentionShape& shape, const at::Tensor& cu_seqlens) {
  if (!cu_seqlens.defined()) {
    return {{0, shape}};
  }
  const auto* begins = cu_seqlens.const_data_ptr<int32_t>();
  std::vector<Part> parts;
  for (int64_t i = 0; i + 1 < cu_seqlens.size(0); ++i) {
    Part part{begins[i], shape};
    part.shape.batch = 1;
    part.shape.length = begins[i + 1] - begins[i];
    parts.push_back(part);
  }
  return parts;
}

// Tasks of all parts in a row, shared out among threads: run(part, its index, begin, end) for tasks
// [begin, end) of a part.
template <typename CountTasks, typename Run>
void share_out(const std::vector<Part>& parts, CountTasks count_tasks, Run run) {
  std::vector<int64_t> first_tasks = {0};
  for (const Part& part : parts) {
    first_tasks.push_back(first_tasks.back() + count_tasks(part.shape));
  }
  at::parallel_for(0, first_tasks.back(), 1, [&](int64_t begin, int64_t end) {
    auto next = std::upper_bound(first_tasks.begin(), first_tasks.end(), begin);
    for (; begin < end; ++next) {
      const size_t index = next - first_tasks.begin() - 1;
      const int64_t stop = std::min(*next, end);
      run(parts[index], index, begin - first_tasks[index], stop - first_tasks[index]);
      begin = stop;
    }
  });
}

template <typename SizeOf>
int64_t largest_size(const std::vector<Part>& parts, SizeOf size_of) {
  int64_t size = 0;
  for (const Part& part : parts) {
    size = std::max(size, size_of(part.shape));
  }
  return size;
}

// A call's tensors, contiguous.
struct Operands {
  at::Tensor qkv;
  at::Tensor cos;  // [T, D / 2]
  at::Tensor sin;
  at::Tensor cu_seqlens;  // may be undefined
  kernels::AttentionShape shape;
  AttentionInstructions instructions;

  std::vector<Part> parts() const { return parts_of(shape, cu_seqlens); }

  template <typename T>
  kernels::AttentionInput<T> input(const Part& part) const {
    return {part.of_qkv(const_pointer<T>(qkv)), cos.const_data_ptr<float>(),
            sin.const_data_ptr<float>(), part.shape};
  }
};

int64_t count_key_value_heads(const kernels::AttentionShape& shape) {
  return shape.batch * shape.num_kv_heads;
}

void attend(const Operands& operands, const at::Tensor& out, const at::Tensor& log_sum_exp) {
  with_element_type(operands.qkv, [&](auto element) {
    using T = decltype(element);
    const AttentionKernel<T> kernel = choose_kernel<T>(operands.instructions);
    const std::vector<Part> parts = operands.parts();
    std::vector<int64_t> packed_begins = {0};
    for (const Part& part : parts) {
      constexpr int64_t kLine = 16;  // floats of a cache line
      const int64_t size = (kernel.packed_size(part.shape) + kLine - 1) / kLine * kLine;
      packed_begins.push_back(packed_begins.back() + size);
    }
    const at::Tensor packed = at::empty({packed_begins.back()}, at::kFloat);
    auto* packed_data = packed.mutable_data_ptr<float>();
    share_out(parts, count_key_value_heads,
              [&](const Part& part, size_t index, int64_t begin, int64_t end) {
                kernel.pack_keys_values(operands.input<T>(part), packed_data + packed_begins[index],
                                        begin, end);
              });
    const Scratch scratch(largest_size(parts, kernel.forward_scratch_size));
    share_out(
        parts,
        [](const kernels::AttentionShape& shape) {
          return shape.batch * shape.num_heads * shape.num_query_blocks();
        },
        [&](const Part& part, size_t index, int64_t begin, int64_t end) {
          kernel.forward(operands.input<T>(part), packed_data + packed_begins[index],
                         part.of_out(mutable_pointer<T>(out)),
                         part.of_log_sum_exp(log_sum_exp.mutable_data_ptr<float>()),
                         scratch.of_this_thread(), begin, end);
        });
  });
}

void differentiate(const Operands& operands, const at::Tensor& out, const at::Tensor& log_sum_exp,
                   const at::Tensor& grad_out, const at::Tensor& grad_qkv) {
  with_element_type(operands.qkv, [&](auto element) {
    using T = decltype(element);
    const AttentionKernel<T> kernel = choose_kernel<T>(operands.instructions);
    const std::vector<Part> parts = operands.parts();
    const Scratch scratch(largest_size(parts, kernel.backward_scratch_size));
    share_out(
        parts, count_key_value_heads, [&](const Part& part, size_t, int64_t begin, int64_t end) {
          const kernels::AttentionGradients<T> gradients{
              part.of_out(const_pointer<T>(out)),
              part.of_log_sum_exp(log_sum_exp.const_data_ptr<float>()),
              part.of_out(const_pointer<T>(grad_out)), part.of_qkv(mutable_pointer<T>(grad_qkv))};
          kernel.backward(operands.input<T>(part), gradients, scratch.of_this_thread(), begin, end);
        });
  });
}

struct CausalAttention : torch::autograd::Function<CausalAttention> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& qkv, const at::Tensor& cos,
                            const at::Tensor& sin, const std::optional<at::Tensor>& cu_seqlens,
                            int64_t num_heads, int64_t num_kv_heads,
                            AttentionInstructions instructions) {
    RECORD_FUNCTION("narrowgauge::nn::CausalAttention", c10::ArrayRef<const c10::IValue>());
    const Operands operands{qkv.contiguous(),
                            cos,
                            sin,
                            cu_seqlens.value_or(at::Tensor()),
                            {qkv.size(0), qkv.size(1), num_heads, num_kv_heads, 2 * cos.size(1)},
                            instructions};
    const kernels::AttentionShape& shape = operands.shape;
    const at::Tensor out = at::empty({shape.batch, shape.length, shape.out_row()}, qkv.options());
    const at::Tensor log_sum_exp =
        at::empty({shape.batch, shape.num_heads, shape.length}, qkv.options().dtype(at::kFloat));
    attend(operands, out, log_sum_exp);
    context->save_for_backward({operands.qkv, cos, sin, out, log_sum_exp, operands.cu_seqlens});
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
        saved[5],
        {qkv.size(0), qkv.size(1), context->saved_data["num_heads"].toInt(),
         context->saved_data["num_kv_heads"].toInt(), 2 * saved[1].size(1)},
        static_cast<AttentionInstructions>(context->saved_data["instructions"].toInt())};
    const at::Tensor grad_qkv = at::empty_like(qkv);
    differentiate(operands, saved[3], saved[4], grads[0].contiguous(), grad_qkv);
    tensor_list result(7);
    result[0] = grad_qkv;
    return result;
  }
};

// [batch, 1, length, length], true where a query may look: back, within its document.
at::Tensor document_mask(const at::Tensor& cu_seqlens, int64_t batch, int64_t length) {
  const at::Tensor tokens = at::arange(batch * length, cu_seqlens.options());
  const at::Tensor documents =
      at::searchsorted(cu_seqlens, tokens, /*out_int32=*/true, /*right=*/true)
          .view({batch, length});
  return documents.unsqueeze(2).eq(documents.unsqueeze(1)).tril().unsqueeze(1);
}

at::Tensor attend_in_parts(const at::Tensor& qkv, const RotaryTable& table, HeadCounts heads,
                           const QKNorm& norm, const at::Tensor& cu_seqlens) {
  const auto [q, k, v] = split_qkv_rope(qkv, table, 0, heads, norm);
  std::optional<at::Tensor> mask;
  if (cu_seqlens.defined()) {
    mask = document_mask(cu_seqlens, qkv.size(0), qkv.size(1));
  }
  return at::scaled_dot_product_attention(q, k, v, mask, /*dropout_p=*/0.0,
                                          /*is_causal=*/!mask, /*scale=*/std::nullopt,
                                          /*enable_gqa=*/heads.num_heads != heads.num_kv_heads)
      .transpose(1, 2)
      .flatten(2);
}

// Only a CPU's values are looked at: to read a GPU's would wait for it.
void check_cu_seqlens(const at::Tensor& cu_seqlens, const at::Tensor& qkv) {
  TORCH_CHECK(cu_seqlens.dim() == 1 && cu_seqlens.scalar_type() == at::kInt &&
                  cu_seqlens.is_contiguous() && cu_seqlens.size(0) > 0 &&
                  cu_seqlens.device() == qkv.device(),
              "expected cu_seqlens int32 [documents + 1] on ", qkv.device(), ", got ",
              cu_seqlens.toString(), " ", cu_seqlens.sizes(), " on ", cu_seqlens.device());
  if (!cu_seqlens.is_cpu()) {
    return;
  }
  const auto* begins = cu_seqlens.const_data_ptr<int32_t>();
  const int64_t num_documents = cu_seqlens.size(0) - 1;
  TORCH_CHECK(begins[0] == 0 && begins[num_documents] == qkv.size(0) * qkv.size(1),
              "expected cu_seqlens from 0 to ", qkv.size(0) * qkv.size(1), ", got ", begins[0],
              " to ", begins[num_documents]);
  for (int64_t i = 0; i < num_documents; ++i) {
    TORCH_CHECK(
        begins[i] < begins[i + 1] && begins[i] / qkv.size(1) == (begins[i + 1] - 1) / qkv.size(1),
        "expected documents of at least one token, each within a row of ", qkv.size(1),
        ", got one from ", begins[i], " to ", begins[i + 1]);
  }
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
                            const QKNorm& norm, AttentionInstructions instructions,
                            const at::Tensor& cu_seqlens) {
  check_qkv(qkv, table, 0, heads, norm);
  if (cu_seqlens.defined()) {
    check_cu_seqlens(cu_seqlens, qkv);
  }
  TORCH_CHECK(heads.num_heads % heads.num_kv_heads == 0,
              "expected query heads in equal groups, got ", heads.num_heads, " for ",
              heads.num_kv_heads, " key/value heads");
  const int64_t head_dim = 2 * table.cos.size(1);
  if (!qkv.is_cpu() || !has_kernel(qkv) || head_dim > kernels::kMaxAttentionHeadDim) {
    return attend_in_parts(qkv, table, heads, norm, cu_seqlens);
  }
  const int64_t length = qkv.size(1);
  return CausalAttention::apply(norm.q_weight.defined() ? normalize_heads(qkv, heads, norm) : qkv,
                                table.cos.narrow(0, 0, length), table.sin.narrow(0, 0, length),
                                cu_seqlens.defined() ? std::optional(cu_seqlens) : std::nullopt,
                                heads.num_heads, heads.num_kv_heads, instructions);
}

}  // namespace narrowgauge::nn

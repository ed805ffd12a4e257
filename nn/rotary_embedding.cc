#include "nn/rotary_embedding.h"

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/where.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include <numbers>

#include "cuda/launch_scope.h"
#include "nn/kernel_dispatch.h"
#include "nn/kernels/rotary_embedding.h"
#include "nn/kernels/rotary_embedding_cuda.h"
#include "nn/rms_norm.h"

namespace narrowgauge::nn {
namespace {

// Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between
// interpolated.
at::Tensor llama3_frequencies(const at::Tensor& inv_freq, const TransformerConfig& config) {
  const double low = config.rope_low_freq_factor;
  const double high = config.rope_high_freq_factor;
  const double old_length = static_cast<double>(config.rope_original_max_seq_len);
  const double low_wavelength = old_length / low;
  const double high_wavelength = old_length / high;
  const at::Tensor wavelength = inv_freq.reciprocal().mul(2 * std::numbers::pi);
  const at::Tensor stretched =
      at::where(wavelength.gt(low_wavelength), inv_freq.div(config.rope_factor), inv_freq);
  const at::Tensor smooth = wavelength.reciprocal().mul(old_length).sub(low).div(high - low);
  const at::Tensor between =
      smooth.neg().add(1).mul(stretched).div(config.rope_factor).add(smooth.mul(stretched));
  const at::Tensor is_between =
      wavelength.ge(high_wavelength).logical_and(wavelength.le(low_wavelength));
  return at::where(is_between, between, stretched);
}

at::Tensor inverse_frequencies(const TransformerConfig& config) {
  const at::Tensor exponent = at::arange(0, config.head_dim, 2, at::kFloat).div(config.head_dim);
  const at::Tensor inv_freq = at::pow(config.rope_theta, exponent).reciprocal();
  if (config.rope_scaling == "none") {
    return inv_freq;
  }
  if (config.rope_scaling == "linear") {
    return inv_freq.div(config.rope_factor);
  }
  TORCH_CHECK(config.rope_scaling == "llama3", "expected rope_scaling none, linear or llama3, got ",
              config.rope_scaling, "; other scalings (yarn, longrope, dynamic) are not supported");
  return llama3_frequencies(inv_freq, config);
}

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

at::Tensor heads_with_unit_stride(const at::Tensor& x) {
  return x.stride(-1) == 1 ? x : x.contiguous();
}

// x: [B, heads, T, D], the last stride 1.
template <typename T, typename Pointer>
kernels::HeadView<T> view_of(const at::Tensor& x, Pointer data) {
  return {data, x.stride(0), x.stride(1), x.stride(2)};
}

// cos, sin: [T, D / 2], those of the positions of qkv's rows.
struct SplitQkvRope : torch::autograd::Function<SplitQkvRope> {
  static tensor_list forward(AutogradContext* context, const at::Tensor& input,
                             const at::Tensor& cos, const at::Tensor& sin, int64_t num_heads,
                             int64_t num_kv_heads) {
    RECORD_FUNCTION("narrowgauge::nn::SplitQkvRope", c10::ArrayRef<const c10::IValue>());
    const at::Tensor qkv = input.contiguous();
    const int64_t batch = qkv.size(0);
    const kernels::QkvShape shape{qkv.size(1), num_heads, num_kv_heads, 2 * cos.size(1)};
    // Attention on a GPU writes its output in q's layout: token by token, o_proj reads it as it is.
    const auto make = [&](int64_t heads) {
      return qkv.is_cuda() ? at::empty({batch, shape.length, heads, shape.head_dim}, qkv.options())
                                 .transpose(1, 2)
                           : at::empty({batch, heads, shape.length, shape.head_dim}, qkv.options());
    };
    const at::Tensor q = make(num_heads);
    const at::Tensor k = make(num_kv_heads);
    const at::Tensor v = make(num_kv_heads);
    with_element_type(qkv, [&](auto element) {
      using T = decltype(element);
      const kernels::QkvHeads<T> out{view_of<T>(q, mutable_pointer<T>(q)),
                                     view_of<T>(k, mutable_pointer<T>(k)),
                                     view_of<T>(v, mutable_pointer<T>(v))};
      if (qkv.is_cuda()) {
        const cuda::LaunchScope scope(qkv);
        kernels::split_and_rotate(const_pointer<T>(qkv), out, cos.const_data_ptr<float>(),
                                  sin.const_data_ptr<float>(), shape, batch * shape.length,
                                  scope.stream());
        return;
      }
      at::parallel_for(0, batch * shape.length, grain_rows(qkv.size(2)), [&](int64_t b, int64_t e) {
        kernels::split_and_rotate(const_pointer<T>(qkv), out, cos.const_data_ptr<float>(),
                                  sin.const_data_ptr<float>(), shape, b, e);
      });
    });
    context->save_for_backward({cos, sin});
    context->saved_data["num_heads"] = num_heads;
    context->saved_data["num_kv_heads"] = num_kv_heads;
    return {q, k, v};
  }

  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "expected a first derivative, got create_graph; split_qkv_rope is differentiable "
                "once");
    const auto saved = context->get_saved_variables();
    const at::Tensor q = heads_with_unit_stride(grads[0]);
    const at::Tensor k = heads_with_unit_stride(grads[1]);
    const at::Tensor v = heads_with_unit_stride(grads[2]);
    const int64_t batch = q.size(0);
    const kernels::QkvShape shape{q.size(2), context->saved_data["num_heads"].toInt(),
                                  context->saved_data["num_kv_heads"].toInt(), q.size(3)};
    const int64_t width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
    const at::Tensor grad_qkv = at::empty({batch, shape.length, width}, q.options());
    with_element_type(q, [&](auto element) {
      using T = decltype(element);
      const kernels::QkvHeads<const T> in{view_of<const T>(q, const_pointer<T>(q)),
                                          view_of<const T>(k, const_pointer<T>(k)),
                                          view_of<const T>(v, const_pointer<T>(v))};
      if (grad_qkv.is_cuda()) {
        const cuda::LaunchScope scope(grad_qkv);
        kernels::rotate_back_and_join(
            in, mutable_pointer<T>(grad_qkv), saved[0].const_data_ptr<float>(),
            saved[1].const_data_ptr<float>(), shape, batch * shape.length, scope.stream());
        return;
      }
      at::parallel_for(0, batch * shape.length, grain_rows(width), [&](int64_t b, int64_t e) {
        kernels::rotate_back_and_join(in, mutable_pointer<T>(grad_qkv),
                                      saved[0].const_data_ptr<float>(),
                                      saved[1].const_data_ptr<float>(), shape, b, e);
      });
    });
    return {grad_qkv, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const auto halves = x.chunk(2, -1);
  return at::cat(
      {halves[0].mul(cos).sub(halves[1].mul(sin)), halves[1].mul(cos).add(halves[0].mul(sin))}, -1);
}

}  // namespace

void check_qkv(const at::Tensor& qkv, const RotaryTable& table, int64_t begin, HeadCounts heads,
               const QKNorm& norm) {
  TORCH_CHECK(table.cos.dim() == 2 && table.cos.sizes() == table.sin.sizes() &&
                  table.cos.scalar_type() == at::kFloat && table.sin.scalar_type() == at::kFloat &&
                  table.cos.is_contiguous() && table.sin.is_contiguous(),
              "expected a table of contiguous fp32 [max_len, head_dim / 2], got ",
              table.cos.sizes(), " and ", table.sin.sizes(), "; use make_rotary_table");
  TORCH_CHECK(qkv.dim() == 3, "expected qkv of shape [B, T, (H + 2 * KV) * D], got ", qkv.sizes());
  const int64_t head_dim = 2 * table.cos.size(1);
  TORCH_CHECK(heads.num_heads > 0 && heads.num_kv_heads > 0, "expected at least one head, got ",
              heads.num_heads, " and ", heads.num_kv_heads, " key/value heads");
  const int64_t width = (heads.num_heads + 2 * heads.num_kv_heads) * head_dim;
  TORCH_CHECK(qkv.size(2) == width, "expected rows of (", heads.num_heads, " + 2 * ",
              heads.num_kv_heads, ") * ", head_dim, " = ", width, " channels, got ", qkv.size(2));
  TORCH_CHECK(begin >= 0 && begin + qkv.size(1) <= table.cos.size(0), "expected positions below ",
              table.cos.size(0), ", got ", begin, " to ", begin + qkv.size(1) - 1,
              "; make the rotary table longer");
  TORCH_CHECK(norm.q_weight.defined() == norm.k_weight.defined(),
              "expected both q and k norm weights or neither");
}

at::Tensor normalize_heads(const at::Tensor& qkv, HeadCounts heads, const QKNorm& norm) {
  const at::Tensor split =
      qkv.unflatten(2, {heads.num_heads + 2 * heads.num_kv_heads, norm.q_weight.numel()});
  const int64_t kv = heads.num_kv_heads;
  return at::cat({rms_norm(split.narrow(2, 0, heads.num_heads), norm.q_weight, norm.eps),
                  rms_norm(split.narrow(2, heads.num_heads, kv), norm.k_weight, norm.eps),
                  split.narrow(2, heads.num_heads + kv, kv)},
                 2)
      .flatten(2);
}

RotaryTable make_rotary_table(const TransformerConfig& config, int64_t max_len) {
  TORCH_CHECK(config.head_dim > 0 && config.head_dim % 2 == 0,
              "expected an even head_dim above 0, got ", config.head_dim);
  TORCH_CHECK(max_len >= 0, "expected max_len >= 0, got ", max_len);
  const at::Tensor angles = at::outer(at::arange(max_len, at::kFloat), inverse_frequencies(config));
  return {angles.cos(), angles.sin()};
}

QKV split_qkv_rope_reference(const at::Tensor& qkv, const RotaryTable& table, int64_t begin,
                             HeadCounts heads, const QKNorm& norm) {
  check_qkv(qkv, table, begin, heads, norm);
  const auto compute = qkv.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t length = qkv.size(1);
  const at::Tensor split =
      qkv.unflatten(2, {heads.num_heads + 2 * heads.num_kv_heads, 2 * table.cos.size(1)})
          .transpose(1, 2);
  at::Tensor q = split.narrow(1, 0, heads.num_heads);
  at::Tensor k = split.narrow(1, heads.num_heads, heads.num_kv_heads);
  const at::Tensor v = split.narrow(1, heads.num_heads + heads.num_kv_heads, heads.num_kv_heads);
  if (norm.q_weight.defined()) {
    q = rms_norm_reference(q, norm.q_weight, norm.eps);
    k = rms_norm_reference(k, norm.k_weight, norm.eps);
  }
  const at::Tensor cos = table.cos.narrow(0, begin, length).to(compute);
  const at::Tensor sin = table.sin.narrow(0, begin, length).to(compute);
  return {rotate(q.to(compute), cos, sin).to(qkv.scalar_type()).contiguous(),
          rotate(k.to(compute), cos, sin).to(qkv.scalar_type()).contiguous(), v.contiguous()};
}

QKV split_qkv_rope(const at::Tensor& qkv, const RotaryTable& table, int64_t begin, HeadCounts heads,
                   const QKNorm& norm) {
  if (!has_kernel(qkv)) {
    return split_qkv_rope_reference(qkv, table, begin, heads, norm);
  }
  check_qkv(qkv, table, begin, heads, norm);
  const int64_t length = qkv.size(1);
  tensor_list heads_out =
      SplitQkvRope::apply(norm.q_weight.defined() ? normalize_heads(qkv, heads, norm) : qkv,
                          table.cos.narrow(0, begin, length), table.sin.narrow(0, begin, length),
                          heads.num_heads, heads.num_kv_heads);
  return {std::move(heads_out[0]), std::move(heads_out[1]), std::move(heads_out[2])};
}

}  // namespace narrowgauge::nn

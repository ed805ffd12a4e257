#include "nn/rotary_embedding.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/where.h>
#include <c10/util/Exception.h>

#include <numbers>

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

void check_arguments(const at::Tensor& qkv, const RotaryTable& table, int64_t begin,
                     HeadCounts heads, const QKNorm& norm) {
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

at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const auto halves = x.chunk(2, -1);
  return at::cat(
      {halves[0].mul(cos).sub(halves[1].mul(sin)), halves[1].mul(cos).add(halves[0].mul(sin))}, -1);
}

}  // namespace

RotaryTable make_rotary_table(const TransformerConfig& config, int64_t max_len) {
  TORCH_CHECK(config.head_dim > 0 && config.head_dim % 2 == 0,
              "expected an even head_dim above 0, got ", config.head_dim);
  TORCH_CHECK(max_len >= 0, "expected max_len >= 0, got ", max_len);
  const at::Tensor angles = at::outer(at::arange(max_len, at::kFloat), inverse_frequencies(config));
  return {angles.cos(), angles.sin()};
}

QKV split_qkv_rope_reference(const at::Tensor& qkv, const RotaryTable& table, int64_t begin,
                             HeadCounts heads, const QKNorm& norm) {
  check_arguments(qkv, table, begin, heads, norm);
  const auto compute = qkv.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t length = qkv.size(1);
  const at::Tensor split =
      qkv.reshape({qkv.size(0), length, heads.num_heads + 2 * heads.num_kv_heads, -1})
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
  return split_qkv_rope_reference(qkv, table, begin, heads, norm);
}

}  // namespace narrowgauge::nn

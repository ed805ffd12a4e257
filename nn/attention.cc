#include "nn/attention.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include "nn/causal_attention.h"

namespace narrowgauge::nn {
namespace {

// Token i of the new ones sees every cached token and the new ones up to itself: [t, length + t],
// true where it may look.
at::Tensor causal_mask_behind_cache(int64_t t, int64_t total, at::Device device) {
  const at::Tensor rows = at::arange(total - t, total, at::TensorOptions(device).dtype(at::kLong));
  const at::Tensor columns = at::arange(total, at::TensorOptions(device).dtype(at::kLong));
  return columns.unsqueeze(0).le(rows.unsqueeze(1));
}

}  // namespace

SelfAttention::SelfAttention(const TransformerConfig& config, int64_t layer,
                             const at::TensorOptions& options)
    : layer_(layer), num_heads_(config.num_heads), num_kv_heads_(config.num_kv_heads) {
  const int64_t q_features = config.num_heads * config.head_dim;
  const int64_t kv_features = config.num_kv_heads * config.head_dim;
  add_child(
      "qkv_proj", qkv_proj,
      std::make_shared<Linear>(
          LinearSpec{config.dim, q_features + 2 * kv_features, config.attention_bias}, options));
  if (config.qk_norm) {
    add_child("q_norm", q_norm,
              std::make_shared<RMSNorm>(config.head_dim, config.norm_eps, options));
    add_child("k_norm", k_norm,
              std::make_shared<RMSNorm>(config.head_dim, config.norm_eps, options));
  }
  add_child("o_proj", o_proj,
            std::make_shared<Linear>(
                LinearSpec{q_features, config.dim, config.attention_output_bias}, options));
}

at::Tensor SelfAttention::operator()(const at::Tensor& x, const AttentionContext& context) {
  return hooked(x, [this, context](const at::Tensor& input) { return attend(input, context); });
}

QKNorm SelfAttention::qk_norm() const {
  return q_norm ? QKNorm{q_norm->weight, k_norm->weight, q_norm->eps} : QKNorm{};
}

at::Tensor SelfAttention::attend(const at::Tensor& x, const AttentionContext& context) {
  const at::Tensor qkv = (*qkv_proj)(x);
  return (*o_proj)(context.cache == nullptr
                       ? causal_attention(qkv, context.rotary, head_counts(), qk_norm(),
                                          AttentionInstructions::kBest, context.cu_seqlens)
                       : attend_to_cache(qkv, context));
}

at::Tensor SelfAttention::attend_to_cache(const at::Tensor& qkv, const AttentionContext& context) {
  const int64_t t = qkv.size(1);
  const int64_t length = context.cache->length();
  const QKV heads =
      split_qkv_rope(qkv, context.rotary, context.first_position, head_counts(), qk_norm());
  std::optional<at::Tensor> mask;
  if (length > 0 && t > 1) {
    mask = causal_mask_behind_cache(t, length + t, qkv.device());
  }
  const auto [k, v] = context.cache->append(layer_, heads.k, heads.v);
  return at::scaled_dot_product_attention(heads.q, k, v, mask, /*dropout_p=*/0.0,
                                          /*is_causal=*/length == 0, /*scale=*/std::nullopt,
                                          /*enable_gqa=*/num_heads_ != num_kv_heads_)
      .transpose(1, 2)
      .flatten(2);
}

}  // namespace narrowgauge::nn

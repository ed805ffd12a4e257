#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "nn/kv_cache.h"
#include "nn/layer.h"
#include "nn/linear.h"
#include "nn/norm.h"
#include "nn/rotary_embedding.h"
#include "nn/transformer_config.h"

namespace narrowgauge::nn {

// What attention needs beside its input: where the tokens stand and what came before them.
struct AttentionContext {
  RotaryTable rotary;
  int64_t first_position = 0;  // of the first token of x
  KVCache* cache = nullptr;    // null in training
  at::Tensor cu_seqlens = {};  // of documents packed into rows, see causal_attention; without cache
};

// Causal self-attention with grouped queries. q, k and v come from one projection (one matrix
// product, one cast); its rows are [q: num_heads * head_dim; k: num_kv_heads * head_dim; v: the
// same].
class SelfAttention : public Layer {
 public:
  SelfAttention(const TransformerConfig& config, int64_t layer, const at::TensorOptions& options);

  // x: [batch, t, dim] -> [batch, t, dim].
  at::Tensor operator()(const at::Tensor& x, const AttentionContext& context);

  std::shared_ptr<Linear> qkv_proj;  // dim -> (num_heads + 2 num_kv_heads) * head_dim
  std::shared_ptr<Linear> o_proj;    // num_heads * head_dim -> dim
  std::shared_ptr<RMSNorm> q_norm;   // per head, qwen3 only
  std::shared_ptr<RMSNorm> k_norm;

 private:
  HeadCounts head_counts() const { return {num_heads_, num_kv_heads_}; }
  QKNorm qk_norm() const;
  at::Tensor attend(const at::Tensor& x, const AttentionContext& context);
  // REQUIRES: context.cache. qkv: [batch, t, (num_heads + 2 num_kv_heads) * head_dim].
  at::Tensor attend_to_cache(const at::Tensor& qkv, const AttentionContext& context);

  int64_t layer_;
  int64_t num_heads_;
  int64_t num_kv_heads_;
};

}  // namespace narrowgauge::nn

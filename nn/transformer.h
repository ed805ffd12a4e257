#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "nn/attention.h"
#include "nn/embedding.h"
#include "nn/gated_activation.h"
#include "nn/kv_cache.h"
#include "nn/layer.h"
#include "nn/linear.h"
#include "nn/norm.h"
#include "nn/training_loss.h"
#include "nn/transformer_config.h"

namespace narrowgauge::nn {

// down(silu(gate(x)) * up(x)) (Shazeer 2020). gate and up are one projection, gate's rows first.
class FeedForward : public Layer {
 public:
  FeedForward(const TransformerConfig& config, const at::TensorOptions& options);

  // x: [batch, t, dim] -> [batch, t, dim].
  at::Tensor operator()(const at::Tensor& x);

  std::shared_ptr<Linear> gate_up_proj;     // dim -> 2 * ffn_dim
  std::shared_ptr<GatedActivation> act_fn;  // 2 * ffn_dim -> ffn_dim
  std::shared_ptr<Linear> down_proj;        // ffn_dim -> dim
};

// x + attention(norm(x)), then that + feed-forward(norm(that)). The unit of sharding and of
// recomputation.
class TransformerBlock : public Layer {
 public:
  TransformerBlock(const TransformerConfig& config, int64_t layer,
                   const at::TensorOptions& options);

  // x: [batch, t, dim] -> [batch, t, dim].
  at::Tensor operator()(const at::Tensor& x, const AttentionContext& context);

  std::shared_ptr<RMSNorm> input_layernorm;
  std::shared_ptr<SelfAttention> self_attn;
  std::shared_ptr<RMSNorm> post_attention_layernorm;
  std::shared_ptr<FeedForward> mlp;
};

// A Llama-family decoder. Parameters carry the Hugging Face names without the prefix "model.",
// except that q, k and v are one qkv_proj and gate and up one gate_up_proj. Built on any device,
// meta included; see nn/initialize.h for the values. It knows nothing of how it is trained:
// conversions swap its Linears, sharding wraps its blocks.
class Transformer : public Layer {
 public:
  Transformer(const TransformerConfig& config, const at::TensorOptions& options);

  // tokens: [batch, t] int64. Returns logits [batch, t, vocab_size] in the parameters' dtype. With
  // a cache, the tokens follow those in the cache and are added to it.
  at::Tensor operator()(const at::Tensor& tokens, KVCache* cache = nullptr);

  // The training objective: `scale` times the sum over valid targets of -log p(target), a scalar in
  // fp32. targets: as tokens, kIgnoredTarget where there is nothing to predict. Training scales by
  // one over the number of valid targets of the whole global batch, so that ranks and micro-batches
  // weigh by their tokens. See linear_cross_entropy_sum: no tensor of all logits, unless a
  // conversion has replaced lm_head. cu_seqlens: documents that do not see each other, see
  // causal_attention.
  at::Tensor loss_sum(const at::Tensor& tokens, const at::Tensor& targets, double scale = 1.0,
                      const at::Tensor& cu_seqlens = {});

  // What loss_sum computes from now on, in place of the cross entropy.
  void set_training_loss(std::shared_ptr<TrainingLoss> loss);

  const TransformerConfig& config() const { return config_; }

  std::shared_ptr<Embedding> embed_tokens;
  std::vector<std::shared_ptr<TransformerBlock>> layers;
  std::shared_ptr<RMSNorm> norm;
  std::shared_ptr<Linear> lm_head;  // an OutputHead; null when tied to embed_tokens

 private:
  // What the head reads: [batch, t, dim].
  at::Tensor hidden(const at::Tensor& tokens, KVCache* cache, const at::Tensor& cu_seqlens = {});
  // x: [batch * t, dim].
  at::Tensor head_loss(const at::Tensor& x, const TrainingLoss::Batch& batch);

  TransformerConfig config_;
  std::shared_ptr<TrainingLoss> training_loss_ = std::make_shared<CrossEntropyLoss>();
  RotaryTable rotary_;  // grows to the longest sequence seen
};

// Throws c10::Error naming the field and the values unless the sizes of `config` fit together.
void check_config(const TransformerConfig& config);

}  // namespace narrowgauge::nn

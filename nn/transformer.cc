#include "nn/transformer.h"

#include <ATen/ops/linear.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "nn/output_head.h"

namespace narrowgauge::nn {
namespace {

constexpr int64_t kShortestRotaryTable = 128;  // so that generation does not grow it token by token

// The children "0", "1", ... of "layers": only there so that names read layers.0.self_attn as
// elsewhere.
class BlockList : public Layer {
 public:
  explicit BlockList(std::vector<std::shared_ptr<TransformerBlock>>& blocks) {
    for (size_t i = 0; i < blocks.size(); ++i) {
      add_child(std::to_string(i), blocks[i], blocks[i]);
    }
  }
};

}  // namespace

FeedForward::FeedForward(const TransformerConfig& config, const at::TensorOptions& options) {
  add_child("gate_up_proj", gate_up_proj,
            std::make_shared<Linear>(LinearSpec{config.dim, 2 * config.ffn_dim, config.mlp_bias},
                                     options));
  add_child("act_fn", act_fn, std::make_shared<GatedActivation>());
  add_child(
      "down_proj", down_proj,
      std::make_shared<Linear>(LinearSpec{config.ffn_dim, config.dim, config.mlp_bias}, options));
}

at::Tensor FeedForward::operator()(const at::Tensor& x) {
  return hooked(x, [this](const at::Tensor& input) {
    return (*down_proj)((*act_fn)((*gate_up_proj)(input)));
  });
}

TransformerBlock::TransformerBlock(const TransformerConfig& config, int64_t layer,
                                   const at::TensorOptions& options) {
  add_child("input_layernorm", input_layernorm,
            std::make_shared<RMSNorm>(config.dim, config.norm_eps, options));
  add_child("self_attn", self_attn, std::make_shared<SelfAttention>(config, layer, options));
  add_child("post_attention_layernorm", post_attention_layernorm,
            std::make_shared<RMSNorm>(config.dim, config.norm_eps, options));
  add_child("mlp", mlp, std::make_shared<FeedForward>(config, options));
}

at::Tensor TransformerBlock::operator()(const at::Tensor& x, const AttentionContext& context) {
  return hooked(x, [this, context](const at::Tensor& input) {
    const at::Tensor attention = (*self_attn)((*input_layernorm)(input), context);
    const auto [residual, normed] = (*post_attention_layernorm)(input, attention);
    return residual.add((*mlp)(normed));
  });
}

Transformer::Transformer(const TransformerConfig& config, const at::TensorOptions& options)
    : config_(config) {
  check_config(config);
  add_child("embed_tokens", embed_tokens,
            std::make_shared<Embedding>(config.vocab_size, config.dim, options));
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    layers.push_back(std::make_shared<TransformerBlock>(config, layer, options));
  }
  register_module("layers", std::make_shared<BlockList>(layers));
  add_child("norm", norm, std::make_shared<RMSNorm>(config.dim, config.norm_eps, options));
  if (!config.tie_word_embeddings) {
    add_child("lm_head", lm_head,
              std::static_pointer_cast<Linear>(std::make_shared<OutputHead>(
                  LinearSpec{config.dim, config.vocab_size, false}, options)));
  }
}

at::Tensor Transformer::operator()(const at::Tensor& tokens, KVCache* cache) {
  return hooked(tokens, [this, cache](const at::Tensor& ids) {
    const at::Tensor x = hidden(ids, cache);
    return lm_head ? (*lm_head)(x) : at::linear(x, embed_tokens->weight);
  });
}

at::Tensor Transformer::loss_sum(const at::Tensor& tokens, const at::Tensor& targets, double scale,
                                 const at::Tensor& cu_seqlens) {
  return hooked(tokens, [this, targets, scale, cu_seqlens](const at::Tensor& ids) {
    return head_loss(hidden(ids, nullptr, cu_seqlens).flatten(0, 1),
                     {ids, targets.flatten(), scale, cu_seqlens});
  });
}

void Transformer::set_training_loss(std::shared_ptr<TrainingLoss> loss) {
  TORCH_CHECK(loss != nullptr, "expected a training loss, got none");
  training_loss_ = std::move(loss);
}

at::Tensor Transformer::head_loss(const at::Tensor& x, const TrainingLoss::Batch& batch) {
  if (!lm_head) {
    return training_loss_->of_hidden(x, embed_tokens->weight, batch);
  }
  if (const auto head = std::dynamic_pointer_cast<OutputHead>(lm_head)) {
    return head->loss(
        x, [loss = training_loss_, batch](const at::Tensor& input, const at::Tensor& weight) {
          return loss->of_hidden(input, weight, batch);
        });
  }
  return training_loss_->of_logits((*lm_head)(x), batch);
}

at::Tensor Transformer::hidden(const at::Tensor& tokens, KVCache* cache,
                               const at::Tensor& cu_seqlens) {
  TORCH_CHECK(tokens.dim() == 2, "expected tokens [batch, t], got ", tokens.sizes());
  const int64_t first_position = cache != nullptr ? cache->length() : 0;
  const int64_t length = first_position + tokens.size(1);
  TORCH_CHECK(length <= config_.max_seq_len, "expected at most model.max_seq_len ",
              config_.max_seq_len, " tokens, got ", length,
              "; shorten the sequence or use a model made for longer ones");
  if (!rotary_.cos.defined() || rotary_.cos.size(0) < length ||
      rotary_.cos.device() != tokens.device()) {
    const RotaryTable table = make_rotary_table(
        config_, std::min(config_.max_seq_len, std::max(2 * length, kShortestRotaryTable)));
    rotary_ = {table.cos.to(tokens.device()), table.sin.to(tokens.device())};
  }
  const AttentionContext context{rotary_, first_position, cache, cu_seqlens};
  at::Tensor x = (*embed_tokens)(tokens);
  for (const auto& block : layers) {
    x = (*block)(x, context);
  }
  if (cache != nullptr) {
    cache->advance(tokens.size(1));
  }
  return (*norm)(x);
}

void check_config(const TransformerConfig& config) {
  const auto positive = [](const char* key, int64_t value) {
    TORCH_CHECK(value > 0, "expected model.", key, " of at least 1, got ", value);
  };
  positive("vocab_size", config.vocab_size);
  positive("dim", config.dim);
  positive("num_layers", config.num_layers);
  positive("num_heads", config.num_heads);
  positive("num_kv_heads", config.num_kv_heads);
  positive("head_dim", config.head_dim);
  positive("ffn_dim", config.ffn_dim);
  positive("max_seq_len", config.max_seq_len);
  TORCH_CHECK(config.num_heads % config.num_kv_heads == 0,
              "expected model.num_kv_heads to divide model.num_heads, got ", config.num_kv_heads,
              " and ", config.num_heads);
  TORCH_CHECK(config.head_dim % 2 == 0, "expected an even model.head_dim (rotary embedding), got ",
              config.head_dim);
}

}  // namespace narrowgauge::nn

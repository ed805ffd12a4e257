#include "plan/activation_model.h"

#include "plan/model_size.h"

namespace narrowgauge::plan {
namespace {

// The FP8 copy of a linear's input that backward gets; 0 where float8 leaves the linear alone, or
// its recipe computes the gradient of the weight from the input itself.
double operand_bytes(const TrainingSpec& spec, int64_t in, int64_t out) {
  const bool fits = spec.uses_float8() && spec.float8_recipe != "rowwise_with_gw_hp" &&
                    float8_refusal(in, out).empty();
  return fits ? static_cast<double>(spec.local_tokens() * in) : 0;
}

}  // namespace

double row_bytes(const TrainingSpec& spec, int64_t features) {
  return static_cast<double>(spec.local_tokens() * features * spec.param_bytes);
}

double BlockActivations::total() const {
  return input + attention_norm + heads_norm + heads + attention + residual + ffn_norm + gate_up +
         ffn + rows + narrow;
}

BlockActivations block_activations(const TrainingSpec& spec) {
  const nn::TransformerConfig& model = spec.model;
  const int64_t q = model.num_heads * model.head_dim;
  const int64_t kv = model.num_kv_heads * model.head_dim;
  BlockActivations bytes;
  bytes.input = row_bytes(spec, model.dim);
  bytes.attention_norm = row_bytes(spec, model.dim);
  bytes.heads_norm = model.qk_norm ? row_bytes(spec, q + kv) : 0;
  bytes.heads = row_bytes(spec, q + 2 * kv);
  bytes.attention = row_bytes(spec, q);
  bytes.residual = row_bytes(spec, model.dim);
  bytes.ffn_norm = row_bytes(spec, model.dim);
  bytes.gate_up = row_bytes(spec, 2 * model.ffn_dim);
  bytes.ffn = row_bytes(spec, model.ffn_dim);
  const int64_t head_rows =
      model.num_heads + (model.qk_norm ? model.num_heads + model.num_kv_heads : 0);
  bytes.rows = 4.0 * static_cast<double>(spec.local_tokens() * (2 + head_rows));
  // What only a converted linear would have kept goes; its operand of one byte comes.
  const auto replace = [&](double& kept, int64_t in, int64_t out) {
    if (const double operand = operand_bytes(spec, in, out); operand > 0) {
      kept = 0;
      bytes.narrow += operand;
    }
  };
  replace(bytes.attention_norm, model.dim, q + 2 * kv);
  replace(bytes.ffn_norm, model.dim, 2 * model.ffn_dim);
  replace(bytes.ffn, model.ffn_dim, model.dim);
  bytes.narrow += operand_bytes(spec, q, model.dim);
  return bytes;
}

double kept_bytes(const BlockActivations& all, Recompute mode) {
  switch (mode) {
    case Recompute::kNone:
      return all.total();
    case Recompute::kSelective:
      return all.total() - all.attention_norm - all.ffn_norm - all.ffn;
    case Recompute::kFull:
      return all.input;
  }
  return 0;
}

}  // namespace narrowgauge::plan

#pragma once

#include "plan/training_spec.h"

// What forward keeps for backward, as the autograd functions of nn/ save it (nn/rms_norm.cc,
// nn/rotary_embedding.cc, nn/causal_attention.cc, nn/swiglu.cc; libtorch's linear and attention). A
// linear keeps its input; other functions keep what is listed at the fields. Counts for one block
// and one forward pass; T tokens of e bytes an element, q = num_heads * head_dim,
// kv = num_kv_heads * head_dim.

namespace narrowgauge::plan {

// Bytes. Fields in the order of forward.
struct BlockActivations {
  double input = 0;           // T dim e: the first norm's input, which is the block's
  double attention_norm = 0;  // T dim e: qkv_proj's input
  double heads_norm = 0;      // T (q + kv) e: inputs of the q and k norms (Qwen3 alone)
  double heads = 0;      // T (q + 2 kv) e: q, k, v of attention, or the projection that holds them
  double attention = 0;  // T q e: its output, o_proj's input
  double residual = 0;   // T dim e: the second norm's input
  double ffn_norm = 0;   // T dim e: gate_up_proj's input
  double gate_up = 0;    // 2 T ffn_dim e: SwiGLU's input
  double ffn = 0;        // T ffn_dim e: down_proj's input
  double rows = 0;       // 4 T (2 + num_heads): one fp32 a row of each norm, a row and head of
                         // attention
  double narrow = 0;  // float8: the operands of one byte an element that its linears keep instead

  double total() const;
};

// Everything a block computes, before anything is dropped for recomputation. With float8, the
// inputs of its linears are replaced by their FP8 operands (`narrow`); attention keeps its output.
BlockActivations block_activations(const TrainingSpec& spec);

// What a block that is recomputed still keeps between forward and backward: its input (full), or
// all but both norms' outputs and SwiGLU's (selective).
double kept_bytes(const BlockActivations& all, Recompute mode);

// Bytes of [T, features] in the compute dtype.
double row_bytes(const TrainingSpec& spec, int64_t features);

}  // namespace narrowgauge::plan

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "nn/transformer_config.h"

namespace narrowgauge::nn {

// Cosine and sine of position * frequency, one column a pair of channels.
struct RotaryTable {
  at::Tensor cos;  // [max_len, head_dim / 2] fp32
  at::Tensor sin;  // [max_len, head_dim / 2] fp32
};

// Frequencies as Hugging Face transformers computes them (fp32, the same operators in the same
// order): theta^(-2i / head_dim), then rope_scaling none | linear | llama3. Throws on another
// scaling, an odd head_dim or a negative max_len.
RotaryTable make_rotary_table(const TransformerConfig& config, int64_t max_len);

struct QKV {
  at::Tensor q;  // [B, H, T, D]
  at::Tensor k;  // [B, KV, T, D]
  at::Tensor v;  // [B, KV, T, D]
};

// Number of query and of key/value heads in a row of qkv.
struct HeadCounts {
  int64_t num_heads = 0;     // H
  int64_t num_kv_heads = 0;  // KV
};

// RMSNorm of each head's q and k before the rotation (qwen3). Both defined or neither.
struct QKNorm {
  at::Tensor q_weight;  // [D]
  at::Tensor k_weight;  // [D]
  double eps = 1e-6;
};

// Throws unless qkv, table, heads and norm fit together as split_qkv_rope wants them.
void check_qkv(const at::Tensor& qkv, const RotaryTable& table, int64_t begin, HeadCounts heads,
               const QKNorm& norm);

// qkv ([B, T, (H + 2 * KV) * D]) with the heads of q and k normalised, v as it is. REQUIRES: norm
// has weights.
at::Tensor normalize_heads(const at::Tensor& qkv, HeadCounts heads, const QKNorm& norm);

// Splits the output of qkv_proj into heads and rotates q and k by their positions: with
// (a, b) = the halves of a head, (a cos - b sin, b cos + a sin); fp32 inside, one rounding.
// qkv: [B, T, (H + 2 * KV) * D] bf16 or fp32; row t has position begin + t.
// Outputs are in qkv's dtype; contiguous on the CPU, the transpose of [B, T, heads, D] on a GPU.
// Differentiable once: one gradient tensor of qkv's shape. Throws if the table is too short or a
// shape does not fit.
QKV split_qkv_rope(const at::Tensor& qkv, const RotaryTable& table, int64_t begin, HeadCounts heads,
                   const QKNorm& norm = {});

// The same in ATen operators: for tests, other devices and other dtypes.
QKV split_qkv_rope_reference(const at::Tensor& qkv, const RotaryTable& table, int64_t begin,
                             HeadCounts heads, const QKNorm& norm = {});

}  // namespace narrowgauge::nn

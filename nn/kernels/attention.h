#pragma once

#include <cstdint>

// Causal self-attention with grouped queries on a CPU, forward and backward, straight from the
// fused projection: rows of qkv hold the heads of q, k and v side by side, and the rotary embedding
// is applied while tiles of q and k are read. With D the head size and P = softmax of
// q k^T / sqrt(D) over the keys up to the query's own position: out = P v.
//
// Scores exist a tile at a time (online softmax, Milakov and Gimelshein 2018; backward as in
// FlashAttention-2, Dao 2023): forward keeps one logarithm a query, backward computes P again from
// it. Scores, softmax and every sum are fp32. Tiles with no visible key are skipped.
//
// Results do not depend on how tasks are divided. A NaN or infinity in q or k of a token reaches
// the queries that see it; one in v may also reach queries up to 128 tokens before it.
namespace narrowgauge::nn::kernels {

inline constexpr int64_t kMaxAttentionHeadDim = 256;
inline constexpr int64_t kQueryBlock = 64;  // queries of one forward task

struct AttentionShape {
  int64_t batch = 0;
  int64_t length = 0;        // T >= 1
  int64_t num_heads = 0;     // H, a multiple of num_kv_heads
  int64_t num_kv_heads = 0;  // KV
  int64_t head_dim = 0;      // D, even, at most kMaxAttentionHeadDim

  int64_t qkv_row() const { return (num_heads + 2 * num_kv_heads) * head_dim; }
  int64_t out_row() const { return num_heads * head_dim; }
  int64_t num_query_blocks() const { return (length + kQueryBlock - 1) / kQueryBlock; }
};

// T is float, or uint16_t for bf16.
template <typename T>
struct AttentionInput {
  const T* qkv = nullptr;      // [batch, length, qkv_row], contiguous
  const float* cos = nullptr;  // [length, D / 2]
  const float* sin = nullptr;  // the same
  AttentionShape shape;
};

template <typename T>
struct AttentionGradients {
  const T* out = nullptr;              // [batch, length, out_row]: what forward wrote
  const float* log_sum_exp = nullptr;  // [batch, H, length]: likewise
  const T* grad_out = nullptr;         // [batch, length, out_row]
  T* grad_qkv = nullptr;               // [batch, length, qkv_row], out
};

// One way of computing it. Sizes are in floats; memory must be aligned to 64 bytes and may hold
// anything.
template <typename T>
struct AttentionKernel {
  // All keys and values in the order that forward reads. pack_keys_values fills it for indices
  // [begin, end) of batch * KV; all of it must be there before forward.
  int64_t (*packed_size)(const AttentionShape& shape);
  void (*pack_keys_values)(const AttentionInput<T>& input, float* packed, int64_t begin,
                           int64_t end);
  // Tasks [begin, end) of batch * H * num_query_blocks; equal numbers of tasks are about equal
  // work. out: [batch, length, out_row]; log_sum_exp: [batch, H, length].
  int64_t (*forward_scratch_size)(const AttentionShape& shape);
  void (*forward)(const AttentionInput<T>& input, const float* packed, T* out, float* log_sum_exp,
                  float* scratch, int64_t begin, int64_t end);
  // Tasks [begin, end) of batch * KV; each writes its keys, values and the queries that use them.
  int64_t (*backward_scratch_size)(const AttentionShape& shape);
  void (*backward)(const AttentionInput<T>& input, const AttentionGradients<T>& gradients,
                   float* scratch, int64_t begin, int64_t end);
};

// Any processor: tiles and products in fp32, q and k not rounded after their rotation.
AttentionKernel<float> portable_attention_float();
AttentionKernel<uint16_t> portable_attention_bf16();

// Processors with AVX512-BF16. Operands of products are bf16, as they are when each step is a
// tensor of its own: q and k after their rotation, P, and P's gradient. Subnormal operands count as
// zero.
bool has_avx512_attention();
AttentionKernel<uint16_t> avx512_attention();

}  // namespace narrowgauge::nn::kernels

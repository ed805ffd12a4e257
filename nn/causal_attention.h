#pragma once

#include <ATen/core/Tensor.h>

#include "nn/rotary_embedding.h"

namespace narrowgauge::nn {

enum class AttentionInstructions {
  kBest,      // what this processor has
  kPortable,  // what every processor has; for tests
};

// softmax(q k^T / sqrt(D)) v over the tokens up to each one, with q, k and v split from the output
// of qkv_proj, q and k normalised (if norm is given) and rotated as by split_qkv_rope at begin = 0;
// a key/value head serves H / KV consecutive query heads. qkv: [B, T, (H + 2 * KV) * D], one
// sequence a row. Returns [B, T, H * D] in its dtype. Differentiable once.
//
// On a CPU in bf16 and fp32 this is one kernel without scores or heads in memory (see
// nn/kernels/attention.h); it saves qkv, the output and one fp32 a query and head. The same bits
// for any number of threads. Elsewhere, or with D > 256: split_qkv_rope and libtorch's
// scaled_dot_product_attention.
//
// cu_seqlens, if defined: where documents packed into the rows begin, counted over the rows one
// after another, and B * T at the end: int32 [documents + 1], ascending from 0, on qkv's device. A
// row begins a document. A token then sees those of its own document alone. On a CPU the kernel
// takes each document as a sequence of its own, so a packed one has the bits of one alone, its
// positions counted from its first token; elsewhere documents are told apart by a mask and
// positions run through the row, which is the same but for rounding, since rotations count
// distances only.
at::Tensor causal_attention(const at::Tensor& qkv, const RotaryTable& table, HeadCounts heads,
                            const QKNorm& norm = {},
                            AttentionInstructions instructions = AttentionInstructions::kBest,
                            const at::Tensor& cu_seqlens = {});

// The same in ATen operators, with all scores in memory: for tests.
at::Tensor causal_attention_reference(const at::Tensor& qkv, const RotaryTable& table,
                                      HeadCounts heads, const QKNorm& norm = {});

}  // namespace narrowgauge::nn

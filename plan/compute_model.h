#pragma once

#include "plan/efficiency.h"
#include "plan/hardware.h"
#include "plan/training_spec.h"

// Roofline: each part of a step takes its operations / attained peak, or its bytes / attained
// bandwidth, and the parts follow one another.
//
//   linears     3 x forward operations (forward, gradient of input, gradient of weight), plus the
//               recomputed share of one forward
//   attention   3.5 x forward: backward is 2.5 x, since it recomputes the scores (FlashAttention-2)
//   elementwise bytes that norms, RoPE, SwiGLU, residuals and cross entropy read and write when
//   each
//               chain is one pass. A block and token, in elements of the compute dtype, with
//               w = (num_heads + 2 num_kv_heads) head_dim:
//                 forward   9 dim + 2 w + 3 ffn_dim
//                 backward 10 dim + 2 w + 5 ffn_dim
//               and 3 vocab_size at the head (read the logits; read them, write their gradient).
//               Llama-3-8B in bf16: 184 KB + 250 KB a token and layer.
//   optimizer   bytes an element that update and refresh move, over the rank's shard

namespace narrowgauge::plan {

// Seconds of one rank in one step, all accumulated passes together.
struct ComputeTime {
  double linears = 0;
  double head = 0;
  double attention = 0;
  double elementwise = 0;
  double optimizer = 0;
  double host = 0;  // time the host needs to launch it all, beside the rest

  double device() const { return linears + head + attention + elementwise + optimizer; }
  double total() const { return device() > host ? device() : host; }
};

// What does not know its memory bandwidth moves bytes in no time. REQUIRES: hardware.has_peak().
ComputeTime compute_time(const TrainingSpec& spec, const Hardware& hardware,
                         const Efficiency& efficiency);

// The operations that count as work (forward and backward, causal attention, nothing recomputed)
// of the whole world in a step.
double model_flops(const TrainingSpec& spec);

}  // namespace narrowgauge::plan

#pragma once

#include <string_view>

namespace narrowgauge::plan {

// What a program attains of the hardware's peaks. Shares multiply Hardware::sustained.
//
// Fitted on published rows (tests/plan/published_rows.h marks which) by hand, few constants to many
// rows; tests/plan/published_rows_test checks the others.
//   kTorchtitanCompiled: bf16_gemm, attention and recomputed_linears on torchtitan's 8B bf16 row,
//     8 x H100 500 W; float8_gemm on the float8 row beside it; float8_rowwise_gemm on torchao's
//     rowwise row; exposed_communication on torchao's row with half the batch.
//   kTorchtitanEager: the same, traffic on the row without compilation.
//   kFused: bf16_gemm on LLMQ's 7B bf16 row, float8_gemm on Transformer Engine's product benchmark
//     (945 of 1979 TFLOP/s, casts included), attention on cuDNN's (514 of 989).
//   Hardware::sustained: 1 for H100 and H200; 500 W H100 on the first row above, B200-limited on
//     torchao's B200 bf16 row.
struct Efficiency {
  double bf16_gemm = 0;
  double float8_gemm = 0;          // casts of the operands included
  double float8_rowwise_gemm = 0;  // with scales for rows
  double attention = 0;            // of the bf16 peak, fused kernel, causal operations
  double memory = 0.9;             // share of memory bandwidth
  // Bytes that elementwise operations move, in multiples of what perfectly fused ones move.
  double traffic = 1.0;
  // Share of the block's matrix products that selective recomputation repeats.
  double recomputed_linears = 0;
  // Share of communication that costs time although computation runs beside it: it takes
  // processors, memory bandwidth and power from the products.
  double exposed_communication = 0;
  // Time in which the host launches one block's forward and backward; a step takes at least this.
  double host_seconds_per_block = 0;
};

inline constexpr Efficiency kTorchtitanEager = {.bf16_gemm = 0.58,
                                                .float8_gemm = 0.42,
                                                .float8_rowwise_gemm = 0.345,
                                                .attention = 0.36,
                                                .traffic = 4.0,
                                                .recomputed_linears = 0.5,
                                                .exposed_communication = 0.6,
                                                .host_seconds_per_block = 1e-3};
inline constexpr Efficiency kTorchtitanCompiled = {.bf16_gemm = 0.58,
                                                   .float8_gemm = 0.42,
                                                   .float8_rowwise_gemm = 0.345,
                                                   .attention = 0.36,
                                                   .traffic = 1.4,
                                                   .recomputed_linears = 0.5,
                                                   .exposed_communication = 0.6,
                                                   .host_seconds_per_block = 5e-4};
inline constexpr Efficiency kFused = {.bf16_gemm = 0.70,
                                      .float8_gemm = 0.48,
                                      .float8_rowwise_gemm = 0.45,
                                      .attention = 0.52,
                                      .exposed_communication = 0.15,
                                      .host_seconds_per_block = 1e-4};

// This program on a GPU: libtorch's matrix products and attention, elementwise operations as
// separate kernels. traffic and host time from one H200 (docs/EVIDENCE.md: 43.4 thousand tokens/s
// with 1.1 G parameters, 20 ms a step with 12.6 M); float8 shares are torchtitan's.
inline constexpr Efficiency kNarrowgaugeGpu = {.bf16_gemm = 0.58,
                                               .float8_gemm = 0.42,
                                               .float8_rowwise_gemm = 0.345,
                                               .attention = 0.36,
                                               .traffic = 10.0,
                                               .exposed_communication = 0.6,
                                               .host_seconds_per_block = 2.2e-3};

// This program on the CPU, fitted on configs/bench/llama_12m.yaml (docs/EVIDENCE.md, 2 cores,
// 335 ms). FP8 products are emulated there, slower than fp32 ones: see compute_model.cc.
inline constexpr Efficiency kNarrowgaugeCpu = {.bf16_gemm = 0.68,
                                               .attention = 0.27,
                                               .memory = 0.5,
                                               .traffic = 1.5,
                                               .exposed_communication = 1.0};

}  // namespace narrowgauge::plan

#pragma once

#include <cstdint>
#include <string>

#include "plan/efficiency.h"

namespace narrowgauge::plan {

// Published training throughput of programs that shard as FSDP does (no tensor, pipeline or context
// parallelism), tokens a second of one GPU. `fitted` marks the rows that constants of
// plan/efficiency.h were chosen on; they say nothing about the model.
struct PublishedRow {
  const char* source;
  const char* model;     // of published_rows_test.cc
  const char* hardware;  // of plan/hardware.cc
  const Efficiency& software;
  int64_t num_gpus;
  int64_t local_batch_size;
  int64_t seq_len;
  int64_t accumulation_steps;
  const char* float8_recipe;  // "tensorwise*": with FP8 all-gather
  const char* recompute;      // none | selective | full | 1/N of the blocks in full
  double tokens_per_second_per_gpu;
  bool fitted;
};

inline constexpr PublishedRow kPublishedRows[] = {
    // torchtitan, benchmarks/llama3_h100_202412: FSDP, per-operator recomputation.
    {"torchtitan 8", "llama3-8b", "H100-500W", kTorchtitanEager, 8, 2, 8192, 1, "none", "selective",
     5762, true},
    {"torchtitan 8 compile", "llama3-8b", "H100-500W", kTorchtitanCompiled, 8, 2, 8192, 1, "none",
     "selective", 6667, true},
    {"torchtitan 8 float8", "llama3-8b", "H100-500W", kTorchtitanCompiled, 8, 2, 8192, 1,
     "tensorwise*", "selective", 8532, true},
    {"torchtitan 128", "llama3-8b", "H100-500W", kTorchtitanEager, 128, 2, 8192, 1, "none",
     "selective", 5605, false},
    {"torchtitan 128 compile", "llama3-8b", "H100-500W", kTorchtitanCompiled, 128, 2, 8192, 1,
     "none", "selective", 6514, false},
    {"torchtitan 128 float8", "llama3-8b", "H100-500W", kTorchtitanCompiled, 128, 2, 8192, 1,
     "tensorwise*", "selective", 8380, false},
    {"torchtitan 32k float8", "llama3-8b", "H100-500W", kTorchtitanCompiled, 8, 1, 32768, 1,
     "tensorwise*", "full", 3890, false},
    // torchao's training documentation: the same with half the batch.
    {"torchao bf16", "llama3-8b", "H100-500W", kTorchtitanCompiled, 8, 1, 8192, 1, "none",
     "selective", 6150, true},
    {"torchao tensorwise", "llama3-8b", "H100-500W", kTorchtitanCompiled, 8, 1, 8192, 1,
     "tensorwise*", "selective", 7689.5, false},
    {"torchao rowwise", "llama3-8b", "H100-500W", kTorchtitanCompiled, 8, 1, 8192, 1, "rowwise",
     "selective", 6768, true},
    {"torchao tutorial bf16", "llama3-8b", "H100-500W", kTorchtitanCompiled, 8, 1, 8192, 1, "none",
     "selective", 6300, false},
    {"torchao tutorial tensorwise", "llama3-8b", "H100-500W", kTorchtitanCompiled, 8, 1, 8192, 1,
     "tensorwise*", "selective", 7600, false},
    {"torchao tutorial rowwise", "llama3-8b", "H100-500W", kTorchtitanCompiled, 8, 1, 8192, 1,
     "rowwise", "selective", 7030, false},
    {"torchao B200 bf16", "llama3-8b", "B200-limited", kTorchtitanCompiled, 8, 1, 8192, 1, "none",
     "selective", 8307.5, true},
    {"torchao B200 tensorwise", "llama3-8b", "B200-limited", kTorchtitanCompiled, 8, 1, 8192, 1,
     "tensorwise*", "selective", 10417, false},
    {"torchao B200 rowwise", "llama3-8b", "B200-limited", kTorchtitanCompiled, 8, 1, 8192, 1,
     "rowwise", "selective", 8640, false},
    // Trainy and WhiteFiber on torchtitan.
    {"torchtitan 32 H200", "llama3-8b", "H200", kTorchtitanCompiled, 32, 2, 8192, 1, "tensorwise*",
     "selective", 10938, false},
    {"torchtitan 64 H200", "llama3-8b", "H200", kTorchtitanCompiled, 64, 2, 8192, 1, "tensorwise*",
     "selective", 10753, false},
    // IBM and Meta, FSDP2 and float8; fms-fsdp.
    {"IBM 8B bf16", "llama3-8b", "H100", kTorchtitanCompiled, 128, 2, 4096, 1, "none", "selective",
     8000, false},
    {"IBM 8B float8", "llama3-8b", "H100", kTorchtitanCompiled, 128, 2, 4096, 1, "tensorwise*",
     "selective", 10000, false},
    {"IBM 70B bf16", "llama3-70b", "H100", kTorchtitanCompiled, 256, 2, 4096, 1, "none", "full",
     956, false},
    {"IBM 70B float8", "llama3-70b", "H100", kTorchtitanCompiled, 256, 2, 4096, 1, "tensorwise*",
     "full", 1430, false},
    {"fms 7B bf16", "llama2-7b", "H100", kTorchtitanCompiled, 128, 2, 4096, 1, "none", "none", 9600,
     false},
    // Transformer Engine: Megatron Bridge 25.11 (5 of 32 blocks recomputed), NeMo 24.12.
    {"Megatron Bridge 8B", "llama3-8b", "H100", kFused, 8, 1, 8192, 16, "tensorwise*", "1/6", 14451,
     false},
    {"NeMo 7B", "llama2-7b", "H100", kFused, 8, 1, 4096, 16, "tensorwise*", "none", 16934, false},
    // LLMQ, one H100, Qwen2.5 shapes.
    {"LLMQ 0.5B bf16", "qwen2.5-0.5b", "H100", kFused, 1, 32, 1024, 1, "none", "none", 149000,
     false},
    {"LLMQ 1.5B bf16", "qwen2.5-1.5b", "H100", kFused, 1, 32, 1024, 1, "none", "none", 59000,
     false},
    {"LLMQ 3B bf16", "qwen2.5-3b", "H100", kFused, 1, 32, 1024, 1, "none", "none", 31000, false},
    {"LLMQ 7B bf16", "qwen2.5-7b", "H100", kFused, 1, 32, 1024, 1, "none", "none", 13800, true},
    {"LLMQ 0.5B float8", "qwen2.5-0.5b", "H100", kFused, 1, 32, 1024, 1, "tensorwise", "none",
     164000, false},
    {"LLMQ 1.5B float8", "qwen2.5-1.5b", "H100", kFused, 1, 32, 1024, 1, "tensorwise", "none",
     73000, false},
    {"LLMQ 3B float8", "qwen2.5-3b", "H100", kFused, 1, 32, 1024, 1, "tensorwise", "none", 40000,
     false},
    {"LLMQ 7B float8", "qwen2.5-7b", "H100", kFused, 1, 32, 1024, 1, "tensorwise", "none", 19100,
     false},
};

}  // namespace narrowgauge::plan

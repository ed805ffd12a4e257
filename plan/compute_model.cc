#include "plan/compute_model.h"

#include "plan/memory_model.h"
#include "plan/model_size.h"

namespace narrowgauge::plan {
namespace {

// Products of FP8 operands on a processor convert them to fp32 first (docs: perf of _scaled_mm).
constexpr double kCpuFloat8Gemm = 0.5;  // of fp32's rate

// Blocks' share that is recomputed.
double recomputed_share(const TrainingSpec& spec) {
  int64_t count = 0;
  for (int64_t i = 0; i < spec.model.num_layers; ++i) {
    count += spec.recomputes(i) ? 1 : 0;
  }
  return static_cast<double>(count) / static_cast<double>(spec.model.num_layers);
}

double plain_rate(const TrainingSpec& spec, const Hardware& hardware, const Efficiency& e) {
  const bool wide = spec.param_bytes == 4 && hardware.fp32_flops > 0;
  return (wide ? hardware.fp32_flops : hardware.bf16_flops) * e.bf16_gemm * hardware.sustained;
}

// Of the block's linears; a recipe on hardware without FP8 products computes as without one.
double block_rate(const TrainingSpec& spec, const Hardware& hardware, const Efficiency& e) {
  if (spec.uses_float8() && hardware.is_cpu()) {
    return hardware.fp32_flops * kCpuFloat8Gemm;
  }
  if (!spec.uses_float8() || hardware.fp8_flops == 0) {
    return plain_rate(spec, hardware, e);
  }
  const bool one_scale = spec.float8_recipe == "tensorwise" || spec.float8_recipe == "delayed";
  return hardware.fp8_flops * hardware.sustained *
         (one_scale ? e.float8_gemm : e.float8_rowwise_gemm);
}

double attention_rate(const TrainingSpec& spec, const Hardware& hardware, const Efficiency& e) {
  const bool wide = spec.param_bytes == 4 && !hardware.is_cpu() && hardware.fp32_flops > 0;
  return (wide ? hardware.fp32_flops : hardware.bf16_flops) * e.attention * hardware.sustained;
}

double elementwise_bytes_per_token(const TrainingSpec& spec, double recomputed) {
  const nn::TransformerConfig& model = spec.model;
  const auto dim = static_cast<double>(model.dim);
  const auto ffn = static_cast<double>(model.ffn_dim);
  const auto w = static_cast<double>((model.num_heads + 2 * model.num_kv_heads) * model.head_dim);
  const double forward = 9 * dim + 2 * w + 3 * ffn;
  const double backward = 10 * dim + 2 * w + 5 * ffn;
  const double layers = static_cast<double>(model.num_layers);
  const double head = 3 * static_cast<double>(model.vocab_size);
  return static_cast<double>(spec.param_bytes) *
         (layers * (forward * (1 + recomputed) + backward) + head);
}

}  // namespace

ComputeTime compute_time(const TrainingSpec& spec, const Hardware& hardware, const Efficiency& e) {
  const ForwardFlops flops = forward_flops(spec.model, spec.seq_len);
  const auto tokens = static_cast<double>(spec.local_tokens() * spec.accumulation_steps);
  const double recomputed = recomputed_share(spec);
  const bool full = spec.recompute == Recompute::kFull;
  const double passes = 3 + recomputed * (full ? 1 : e.recomputed_linears);
  const double plain = plain_rate(spec, hardware, e);
  ComputeTime time;
  time.linears =
      tokens * passes *
      (flops.block_linears / block_rate(spec, hardware, e) + flops.other_linears / plain);
  time.head = tokens * 3 * flops.head / plain;
  time.attention = tokens * (3.5 + (full ? recomputed : 0)) * flops.attention /
                   attention_rate(spec, hardware, e);
  if (hardware.memory_bandwidth > 0) {
    const double bandwidth = hardware.memory_bandwidth * e.memory;
    time.elementwise =
        tokens * elementwise_bytes_per_token(spec, recomputed) * e.traffic / bandwidth;
    time.optimizer = optimizer_traffic_bytes(spec) / bandwidth;
  }
  time.host = static_cast<double>(spec.model.num_layers * spec.accumulation_steps) *
              e.host_seconds_per_block;
  return time;
}

double model_flops(const TrainingSpec& spec) {
  return 3 * forward_flops(spec.model, spec.seq_len).total() *
         static_cast<double>(spec.tokens_per_step());
}

}  // namespace narrowgauge::plan

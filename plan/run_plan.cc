#include "plan/run_plan.h"

#include <algorithm>

#include "plan/model_size.h"

namespace narrowgauge::plan {
namespace {

constexpr int64_t kLargestWorld = 4096;

std::vector<Float8Layer> float8_layers(const TrainingSpec& spec) {
  std::vector<Float8Layer> layers;
  if (!spec.uses_float8()) {
    return layers;
  }
  for (const ParameterSize& parameter : block_parameters(spec.model)) {
    if (parameter.is_block_linear) {
      const std::string name = parameter.name.substr(0, parameter.name.rfind('.'));
      layers.push_back({name, parameter.row_numel, parameter.rows,
                        float8_refusal(parameter.row_numel, parameter.rows)});
    }
  }
  layers.push_back({"lm_head", spec.model.dim, spec.model.vocab_size,
                    "the output layer stays in the compute dtype"});
  return layers;
}

double available_bytes(const Hardware& hardware) {
  return std::max(0.0, hardware.memory_bytes - reserved_bytes(hardware));
}

struct RecomputeSetting {
  Recompute mode;
  int64_t every_nth;
};

// What was asked for, and what recomputes more.
std::vector<RecomputeSetting> recompute_settings(const TrainingSpec& spec, const Freedom& freedom) {
  std::vector<RecomputeSetting> settings = {{spec.recompute, spec.recompute_every_nth}};
  if (freedom.recompute && spec.recompute == Recompute::kNone) {
    settings.push_back({Recompute::kSelective, 1});
  }
  if (freedom.recompute) {
    settings.push_back({Recompute::kFull, 1});
  }
  return settings;
}

struct Search {
  const TrainingSpec& spec;
  const Hardware& hardware;
  double available = 0;
  std::optional<Alternative> best;

  void consider(TrainingSpec candidate) {
    const MemoryPlan memory = plan_memory(candidate, hardware);
    if (memory.peak.total() > available) {
      return;
    }
    const auto time = plan_step(candidate, hardware, default_efficiency(hardware));
    Alternative found = {std::move(candidate), memory.peak.total(), std::nullopt};
    if (time) {
      found.tokens_per_second = time->tokens_per_second;
    }
    // Without a known peak, the first that fits: the one nearest to what was asked for.
    if (!best || (time && found.tokens_per_second > best->tokens_per_second)) {
      best = std::move(found);
    }
  }
};

// Every setting on `world` ranks.
void search_world(Search& search, const Freedom& freedom, int64_t world) {
  const TrainingSpec& spec = search.spec;
  const int64_t tokens = spec.tokens_per_step();
  std::vector<int64_t> shard_degrees = {spec.shard_degree * (world / spec.world_size())};
  if (shard_degrees.front() != world) {
    shard_degrees.push_back(world);
  }
  for (const int64_t shards : shard_degrees) {
    for (int64_t batch = spec.local_batch_size; batch >= 1; batch /= 2) {
      const int64_t tokens_of_pass = batch * spec.seq_len * world;
      if (spec.local_batch_size % batch != 0) {
        continue;
      }
      for (const auto& [mode, every_nth] : recompute_settings(spec, freedom)) {
        TrainingSpec candidate = spec;
        candidate.shard_degree = shards;
        candidate.replicate_degree = world / shards;
        candidate.local_batch_size = batch;
        candidate.recompute = mode;
        candidate.recompute_every_nth = every_nth;
        candidate.accumulation_steps = std::max<int64_t>(1, tokens / tokens_of_pass);
        search.consider(candidate);
      }
    }
  }
}

}  // namespace

const Efficiency& default_efficiency(const Hardware& hardware) {
  return hardware.is_cpu() ? kNarrowgaugeCpu : kNarrowgaugeGpu;
}

std::optional<StepTime> plan_step(const TrainingSpec& spec, const Hardware& hardware,
                                  const Efficiency& efficiency) {
  if (!hardware.has_peak()) {
    return std::nullopt;
  }
  StepTime time;
  time.compute = compute_time(spec, hardware, efficiency);
  time.communication = communication_time(spec, hardware);
  time.exposed =
      exposed_seconds(time.communication, time.compute.total(), efficiency.exposed_communication);
  time.seconds = time.compute.total() + time.exposed;
  time.tokens_per_second = static_cast<double>(spec.tokens_per_step()) / time.seconds;
  const bool is_wide = spec.param_bytes == 4 && hardware.fp32_flops > 0;
  const double peak = is_wide ? hardware.fp32_flops : hardware.bf16_flops;
  time.model_flops_utilization =
      model_flops(spec) / (time.seconds * peak * static_cast<double>(spec.world_size()));
  return time;
}

RunPlan plan_run(const TrainingSpec& spec, const Hardware& hardware, const Freedom& freedom) {
  RunPlan plan;
  plan.spec = spec;
  plan.hardware = hardware;
  plan.memory = plan_memory(spec, hardware);
  plan.available_bytes = available_bytes(hardware);
  plan.time = plan_step(spec, hardware, default_efficiency(hardware));
  plan.float8_layers = float8_layers(spec);
  if (plan.available_bytes == 0 || plan.fits()) {
    return plan;
  }
  Search search{spec, hardware, plan.available_bytes, std::nullopt};
  const int64_t largest = freedom.world_size ? kLargestWorld : spec.world_size();
  for (int64_t world = spec.world_size(); world <= largest && !search.best; world *= 2) {
    search_world(search, freedom, world);
  }
  plan.alternative = std::move(search.best);
  return plan;
}

}  // namespace narrowgauge::plan

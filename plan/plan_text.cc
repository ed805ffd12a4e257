#include "plan/plan_text.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "plan/model_size.h"

namespace narrowgauge::plan {
namespace {

constexpr double kGiB = 1 << 30;

[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...) {
  char text[256];
  va_list arguments;
  va_start(arguments, pattern);
  std::vsnprintf(text, sizeof text, pattern, arguments);
  va_end(arguments);
  return text;
}

// "1,234,567"
std::string grouped(double value) {
  std::string digits = format("%.0f", value);
  for (auto at = static_cast<int64_t>(digits.size()) - 3; at > 0; at -= 3) {
    digits.insert(static_cast<size_t>(at), 1, ',');
  }
  return digits;
}

std::string size_text(double bytes) {
  return bytes >= 0.1 * kGiB ? format("%.2f GiB", bytes / kGiB)
                             : format("%.1f MiB", bytes / (1 << 20));
}

std::string seconds_text(double seconds) {
  return seconds < 1 ? format("%.2f ms", seconds * 1e3) : format("%.3f s", seconds);
}

const char* recompute_name(Recompute mode) {
  constexpr const char* kNames[] = {"none", "selective", "full"};
  return kNames[static_cast<size_t>(mode)];
}

std::string detail(const RunPlan& plan, Kind kind) {
  const TrainingSpec& spec = plan.spec;
  switch (kind) {
    case Kind::kParameters:
      return spec.shard_degree > 1 ? format("fp32, a share of 1/%ld", spec.shard_degree) : "fp32";
    case Kind::kOptimizer:
      return spec.optimizer +
             format(", %.2f bytes a parameter", optimizer_state_bytes(spec.optimizer));
    case Kind::kGathered:
      return std::string(spec.param_bytes == 4 ? "" : "copies in bf16") +
             (spec.uses_float8() ? " and FP8" : "") +
             (spec.shard_degree > 1 ? ", blocks in flight and the root" : "");
    case Kind::kGradients:
      return spec.accumulation_steps > 1 ? format("%ld passes a step", spec.accumulation_steps)
                                         : "";
    case Kind::kActivations: {
      const auto& blocks = plan.memory.activations_of_block;
      return format("%s a block x %ld, recomputation %s", size_text(blocks.front()).c_str(),
                    static_cast<long>(blocks.size()), recompute_name(spec.recompute));
    }
    case Kind::kWorkspace:
      return "between two operations";
    default:
      return "the program itself";
  }
}

std::string header(const RunPlan& plan) {
  const TrainingSpec& spec = plan.spec;
  std::string text = format(
      "%s: %s parameters; a step is %s tokens: %ld x %ld on each of %ld rank%s, %ld pass%s\n",
      spec.model.architecture.c_str(),
      grouped(static_cast<double>(model_numel(spec.model))).c_str(),
      grouped(static_cast<double>(spec.tokens_per_step())).c_str(), spec.local_batch_size,
      spec.seq_len, spec.world_size(), spec.world_size() == 1 ? "" : "s", spec.accumulation_steps,
      spec.accumulation_steps == 1 ? "" : "es");
  text += plan.hardware.name + ": " +
          format("%ld replica%s x %ld shard%s", spec.replicate_degree,
                 spec.replicate_degree == 1 ? "" : "s", spec.shard_degree,
                 spec.shard_degree == 1 ? "" : "s");
  return text + ", compute in " + (spec.param_bytes == 4 ? "fp32" : "bf16") +
         (spec.uses_float8() ? ", float8 " + spec.float8_recipe : "") + "\n";
}

std::string alternative_text(const RunPlan& plan) {
  if (!plan.alternative) {
    return "no setting of this step fits on up to 4096 of them\n";
  }
  const Alternative& other = *plan.alternative;
  std::string text = "the fastest that fits: " + describe_change(plan.spec, other.spec) + "\n  " +
                     size_text(other.peak_bytes);
  if (other.tokens_per_second) {
    text += ", " + grouped(*other.tokens_per_second) + " tokens/s";
  }
  return text + "\n";
}

std::string time_text(const RunPlan& plan) {
  if (!plan.time) {
    return "\ntime: peak unknown, pass --peak-tflops\n";
  }
  const StepTime& time = *plan.time;
  const auto world = static_cast<double>(plan.spec.world_size());
  std::string text = "\nstep " + seconds_text(time.seconds) + ", " +
                     grouped(time.tokens_per_second) + " tokens/s, " +
                     grouped(time.tokens_per_second / world) + " a rank, " +
                     format("%.1f %% of the %s peak\n", 100 * time.model_flops_utilization,
                            plan.spec.param_bytes == 4 ? "fp32" : "bf16");
  const std::pair<const char*, double> parts[] = {
      {"block linears", time.compute.linears}, {"head", time.compute.head},
      {"attention", time.compute.attention},   {"elementwise", time.compute.elementwise},
      {"optimizer", time.compute.optimizer},   {"communication", time.exposed}};
  for (const auto& [name, seconds] : parts) {
    text += format("  %-14s %12s  %4.1f %%\n", name, seconds_text(seconds).c_str(),
                   100 * seconds / time.seconds);
  }
  if (time.compute.host > time.compute.device()) {
    text += "  the host takes " + seconds_text(time.compute.host) +
            " to launch it: larger passes would cost nothing\n";
  }
  if (time.communication.total() > 0) {
    text += "  communication in all " + seconds_text(time.communication.total()) +
            ", the rest hidden behind computation\n";
  }
  if (plan.hardware.memory_bandwidth == 0) {
    text += "  memory bandwidth unknown: matrix products alone, a lower bound of the time\n";
  }
  return text;
}

std::string float8_text(const RunPlan& plan) {
  if (plan.float8_layers.empty()) {
    return "";
  }
  std::string text = "\nfloat8 " + plan.spec.float8_recipe +
                     (plan.hardware.has_peak() && plan.hardware.fp8_flops == 0
                          ? ", emulated: no FP8 products on " + plan.hardware.name
                          : "") +
                     "\n";
  for (const Float8Layer& layer : plan.float8_layers) {
    text += format("  %-22s %6ld -> %6ld  %s\n", layer.name.c_str(), layer.in_features,
                   layer.out_features,
                   layer.refusal.empty() ? "FP8" : ("no: " + layer.refusal).c_str());
  }
  return text;
}

nlohmann::ordered_json memory_json(const RunPlan& plan) {
  nlohmann::ordered_json memory;
  for (size_t kind = 0; kind < kNumKinds; ++kind) {
    memory[kind_name(static_cast<Kind>(kind))] =
        std::llround(plan.memory.peak[static_cast<Kind>(kind)]);
  }
  memory["total"] = std::llround(plan.memory.peak.total());
  memory["moment"] = plan.memory.moment;
  nlohmann::ordered_json blocks = nlohmann::ordered_json::array();
  for (const double bytes : plan.memory.activations_of_block) {
    blocks.push_back(std::llround(bytes));
  }
  memory["activations_of_block"] = std::move(blocks);
  return memory;
}

nlohmann::ordered_json time_json(const RunPlan& plan) {
  if (!plan.time) {
    return nullptr;
  }
  const StepTime& time = *plan.time;
  return {{"step_seconds", time.seconds},
          {"tokens_per_second", time.tokens_per_second},
          {"model_flops_utilization", time.model_flops_utilization},
          {"linears", time.compute.linears},
          {"head", time.compute.head},
          {"attention", time.compute.attention},
          {"elementwise", time.compute.elementwise},
          {"optimizer", time.compute.optimizer},
          {"host", time.compute.host},
          {"communication", time.communication.total()},
          {"communication_exposed", time.exposed}};
}

}  // namespace

std::string describe_change(const TrainingSpec& from, const TrainingSpec& to) {
  std::string text;
  const auto add = [&](const std::string& part) { text += (text.empty() ? "" : " ") + part; };
  if (to.world_size() != from.world_size()) {
    add(std::to_string(to.world_size()) + " ranks,");
  }
  if (to.replicate_degree != from.replicate_degree) {
    add("parallelism.data_parallel_replicate_degree=" + std::to_string(to.replicate_degree));
  }
  if (to.local_batch_size != from.local_batch_size) {
    add("training.local_batch_size=" + std::to_string(to.local_batch_size));
  }
  const int64_t windows = to.tokens_per_step() / to.seq_len;
  if (to.accumulation_steps != from.accumulation_steps ||
      windows != from.tokens_per_step() / from.seq_len) {
    add("training.global_batch_size=" + std::to_string(windows));
  }
  if (to.recompute != from.recompute || to.recompute_every_nth != from.recompute_every_nth) {
    add(to.recompute == Recompute::kFull
            ? "activation_checkpoint.mode=full"
            : "activation_checkpoint.mode=selective activation_checkpoint.selective_ac_option=op");
  }
  return text;
}

std::string memory_text(const RunPlan& plan) {
  std::string text = "\nmemory of a rank at its fullest, " + plan.memory.moment + "\n";
  for (size_t i = 0; i < kNumKinds; ++i) {
    const auto kind = static_cast<Kind>(i);
    if (plan.memory.peak[kind] > 0) {
      text += format("  %-14s %12s  %s\n", kind_name(kind),
                     size_text(plan.memory.peak[kind]).c_str(), detail(plan, kind).c_str());
    }
  }
  text += format("  %-14s %12s\n", "total", size_text(plan.memory.peak.total()).c_str());
  if (plan.available_bytes == 0) {
    return text + "fits: memory of " + plan.hardware.name + " unknown, pass --memory-gib\n";
  }
  const std::string room =
      size_text(plan.available_bytes) + " for tensors on " + plan.hardware.name;
  if (plan.fits()) {
    return text + "fits: yes, in " + room + "\n";
  }
  return text + "fits: no, there are " + room + "\n" + alternative_text(plan);
}

std::string to_text(const RunPlan& plan) {
  return header(plan) + memory_text(plan) + time_text(plan) + float8_text(plan);
}

std::string to_json(const RunPlan& plan) {
  const TrainingSpec& spec = plan.spec;
  nlohmann::ordered_json json = {
      {"parameters", model_numel(spec.model)},
      {"gpu", plan.hardware.name},
      {"world_size", spec.world_size()},
      {"replicate_degree", spec.replicate_degree},
      {"shard_degree", spec.shard_degree},
      {"tokens_per_step", spec.tokens_per_step()},
      {"accumulation_steps", spec.accumulation_steps},
      {"memory_bytes", memory_json(plan)},
      {"available_bytes", plan.available_bytes > 0
                              ? nlohmann::ordered_json(std::llround(plan.available_bytes))
                              : nlohmann::ordered_json()},
      {"fits",
       plan.available_bytes > 0 ? nlohmann::ordered_json(plan.fits()) : nlohmann::ordered_json()},
      {"time", time_json(plan)}};
  json["alternative"] = nullptr;
  if (plan.alternative) {
    json["alternative"] = {{"overrides", describe_change(spec, plan.alternative->spec)},
                           {"world_size", plan.alternative->spec.world_size()},
                           {"total", std::llround(plan.alternative->peak_bytes)}};
  }
  json["float8"] = nlohmann::ordered_json::array();
  for (const Float8Layer& layer : plan.float8_layers) {
    json["float8"].push_back({{"name", layer.name},
                              {"in_features", layer.in_features},
                              {"out_features", layer.out_features},
                              {"refusal", layer.refusal}});
  }
  return json.dump();
}

std::string compare_text(const RunPlan& plan, double measured_step_seconds,
                         double measured_peak_bytes) {
  std::string text;
  if (measured_step_seconds > 0) {
    const double measured =
        static_cast<double>(plan.spec.tokens_per_step()) / measured_step_seconds;
    text += "time: a step took " + seconds_text(measured_step_seconds) + ", " + grouped(measured) +
            " tokens/s; planned ";
    text += plan.time ? seconds_text(plan.time->seconds) + ", " +
                            format("%+.0f %% off\n",
                                   100 * (plan.time->seconds / measured_step_seconds - 1))
                      : "unknown, the peak of " + plan.hardware.name + " is not known\n";
  }
  if (measured_peak_bytes > 0) {
    const double planned = plan.memory.peak.total();
    text += "memory: " + size_text(measured_peak_bytes) + " at most; planned " +
            size_text(planned) + ", " +
            format("%+.0f %% off\n", 100 * (planned / measured_peak_bytes - 1));
  }
  return text;
}

}  // namespace narrowgauge::plan

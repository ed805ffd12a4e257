#include "trainer/float8_conversion.h"

#include <c10/util/Exception.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "float8/convert.h"
#include "float8/float8_linear.h"
#include "float8/float8_training.h"
#include "trainer/dtype.h"

namespace narrowgauge::trainer {
namespace {

// Above these shares an operand is worth a look. Dynamic scales never saturate: the largest element
// of each group is the largest code, by construction.
constexpr double kManySaturated = 0.001;
constexpr double kManyUnderflowed = 0.25;

class Float8Action final : public StepAction {
 public:
  Float8Action(const Float8Config& config, nn::Transformer& model, const comm::DeviceMesh& mesh)
      : training_(model, mesh), health_interval_(config.health_interval) {}

  void before_training() override { training_.refresh(); }

  void before_step(int64_t step) override { training_.sample_health(is_sampled(step)); }

  StepReport after_step(int64_t step) override {
    training_.after_optimizer_step();
    return is_sampled(step) ? report(step) : StepReport();
  }

  void after_skipped_step(int64_t /*step*/) override { training_.refresh(); }

  NamedBuffers named_buffers() override {
    NamedBuffers buffers;
    for (const auto& [name, tensor] : training_.named_buffers()) {
      buffers.emplace_back("float8." + name, tensor);
    }
    return buffers;
  }

 private:
  bool is_sampled(int64_t step) const {
    return health_interval_ > 0 && (step == 1 || step % health_interval_ == 0);
  }

  StepReport report(int64_t step) {
    nlohmann::ordered_json layers;
    StepReport report;
    for (const float8::NamedHealth& operand : training_.take_health()) {
      const float8::OperandHealth& health = operand.health;
      const double saturated = health.num_saturated / health.num_elements;
      const double underflowed = health.num_underflowed / health.num_elements;
      layers[operand.layer][operand.operand] = {{"saturated", saturated},
                                                {"underflowed", underflowed},
                                                {"scale_min", health.scale_min},
                                                {"scale_max", health.scale_max}};
      if (operand.is_delayed && saturated > kManySaturated) {
        warn(step, operand, "of its elements saturate", saturated, report);
      }
      if (underflowed > kManyUnderflowed) {
        warn(step, operand, "of its elements underflow to zero", underflowed, report);
      }
    }
    report.metrics_lines.push_back(
        nlohmann::ordered_json{{"step", step}, {"float8", layers}}.dump());
    return report;
  }

  // Once for each operand and complaint: a run samples often.
  void warn(int64_t step, const float8::NamedHealth& operand, const std::string& complaint,
            double fraction, StepReport& report) {
    const std::string subject = operand.operand + " of " + operand.layer;
    if (warned_.insert(subject + complaint).second) {
      char text[32];
      std::snprintf(text, sizeof text, "%.2f %% ", 100.0 * fraction);
      report.warnings.push_back("step " + std::to_string(step) + "  float8: " + subject + ": " +
                                text + complaint +
                                "; if the loss suffers, add that layer to float8.filter_fqns");
    }
  }

  float8::Float8Training training_;
  int64_t health_interval_;
  std::set<std::string> warned_;
};

}  // namespace

float8::Float8LinearConfig float8_linear_config(const Float8Config& config) {
  try {
    auto linear = float8::Float8LinearConfig::from_recipe_name(config.recipe_name);
    linear.amax_history_len = config.amax_history_len;
    linear.amax_compute_algo = config.amax_compute_algo == "most_recent"
                                   ? float8::AmaxComputeAlgo::kMostRecent
                                   : float8::AmaxComputeAlgo::kMax;
    linear.enable_fsdp_float8_all_gather = config.enable_fsdp_float8_all_gather;
    linear.pad_inner_dim = config.pad_inner_dim;
    linear.emulate = config.emulate;
    for (const std::string& assignment : config.casts) {
      float8::override_cast(linear, assignment);
    }
    float8::set_fast_accum(linear, config.use_fast_accum);
    float8::check_config(linear);
    return linear;
  } catch (const c10::Error& error) {
    throw ConfigError("float8: " + std::string(error.what_without_backtrace()));
  }
}

std::vector<float8::LinearDecision> convert_to_float8(const Float8Config& config,
                                                      nn::Transformer& model) {
  if (config.recipe_name == kNoFloat8) {
    return {};
  }
  const float8::Float8LinearConfig linear = float8_linear_config(config);
  auto decisions = float8::select_linears(model, linear, config.filter_fqns);
  float8::convert_to_float8_training(model, linear, decisions);
  return decisions;
}

void describe_float8(const TrainConfig& config,
                     const std::vector<float8::LinearDecision>& decisions) {
  if (decisions.empty()) {
    return;
  }
  const float8::Float8LinearConfig linear = float8_linear_config(config.float8);
  const int64_t tokens = config.training.local_batch_size * config.training.seq_len;
  const at::ScalarType dtype = parse_dtype(config.training.mixed_precision_param);
  float8::SavedBytes saved;
  for (const float8::LinearDecision& decision : decisions) {
    if (decision.converted) {
      const nn::LinearSpec spec{decision.in_features, decision.out_features, false};
      const auto of_layer = float8::saved_bytes(linear, spec, tokens, dtype);
      saved.float8_linear += of_layer.float8_linear;
      saved.linear += of_layer.linear;
    }
  }
  constexpr double kMegabyte = 1 << 20;
  std::fprintf(
      stderr, "float8 %s: linears keep %.1f MB of inputs for backward instead of %.1f MB\n",
      config.float8.recipe_name.c_str(), static_cast<double>(saved.float8_linear) / kMegabyte,
      static_cast<double>(saved.linear) / kMegabyte);
  for (const std::string& line : float8::describe(decisions)) {
    std::fprintf(stderr, "  %s\n", line.c_str());
  }
}

std::unique_ptr<StepAction> make_float8_action(const Float8Config& config, nn::Transformer& model,
                                               const comm::DeviceMesh& mesh) {
  return std::make_unique<Float8Action>(config, model, mesh);
}

}  // namespace narrowgauge::trainer

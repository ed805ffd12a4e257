#include "trainer/qat_conversion.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <cstdio>
#include <map>
#include <string>
#include <utility>

#include "qat/learned_range.h"
#include "trainer/dtype.h"

namespace narrowgauge::trainer {
namespace {

qat::PrepareConfig prepare_config(const TrainConfig& config) {
  qat::PrepareConfig prepare;
  if (config.qat.scheme != kNoScheme) {
    quantization::SchemeOptions options;
    if (config.qat.group_size != 0) {
      options.group_size = config.qat.group_size;
    }
    if (config.qat.bits != 0) {
      options.bits = static_cast<int>(config.qat.bits);
    }
    prepare.scheme = quantization::scheme_by_name(config.qat.scheme, options);
  }
  for (const std::string& text : config.qat.overrides) {
    prepare.rules.push_back(qat::parse_module_rule(text));
  }
  prepare.tied_embeddings = config.model.tie_word_embeddings;
  prepare.learned_ranges = config.qat.learned_ranges;
  return prepare;
}

// "layers.0.mlp.down_proj" of "layers.0.mlp.down_proj.weight_scale".
std::string owner_of(const std::string& parameter) {
  return parameter.substr(0, parameter.rfind('.'));
}

// Fills `range`, rows of the parameter of that name, for those rows of the weight.
void fill_range(const std::string& name, const at::Tensor& weight, at::ScalarType dtype,
                const quantization::QuantizationSpec& spec, const at::Tensor& range) {
  const qat::LearnedRange initial = qat::initial_range(weight.to(dtype), spec);
  range.copy_(name.ends_with(qat::kScaleName) ? initial.scale : initial.zero_point);
}

// All ranges below `model`, as initial_range of the weights' shards.
void begin_ranges(nn::Transformer& model, at::ScalarType dtype) {
  const at::NoGradGuard no_grad;
  std::map<std::string, quantization::QuantizationSpec> spec_of;
  for (const qat::PreparedLayer& layer : qat::prepared_layers(model)) {
    spec_of.emplace(layer.fqn, layer.scheme.weight);
  }
  std::map<std::string, at::Tensor> local;
  for (const fsdp::ShardedParameter& parameter : fsdp::sharded_parameters(model)) {
    local.emplace(parameter.fqn, parameter.local);
  }
  for (const auto& [name, range] : local) {
    if (qat::is_learned_range(name)) {
      const std::string owner = owner_of(name);
      fill_range(name, local.at(owner + ".weight"), dtype, spec_of.at(owner), range);
    }
  }
}

class QATAction final : public StepAction {
 public:
  QATAction(const TrainConfig& config, nn::Transformer& model)
      : after_n_steps_(config.qat.fake_quant_after_n_steps),
        dtype_(parse_dtype(config.training.mixed_precision_param)),
        model_(model) {
    enable(after_n_steps_ == 0);
  }

  void before_step(int64_t step) override {
    if (enabled_ != (step > after_n_steps_)) {
      enable(step > after_n_steps_);
      began_ = enabled_ && step > 1;
    }
    if (after_n_steps_ > 0 && step == after_n_steps_ + 1) {
      begin_ranges(model_, dtype_);
    }
  }

  StepReport after_step(int64_t step) override {
    StepReport report;
    if (began_) {
      report.warnings.push_back("step " + std::to_string(step) + "  fake quantization is on");
      began_ = false;
    }
    return report;
  }

 private:
  void enable(bool enabled) {
    enabled_ = enabled;
    qat::set_fake_quant_enabled(model_, enabled);
  }

  const int64_t after_n_steps_;
  const at::ScalarType dtype_;  // of compute
  nn::Transformer& model_;
  bool enabled_ = false;
  bool began_ = false;  // with the step at hand
};

}  // namespace

bool uses_qat(const TrainConfig& config) {
  return config.qat.scheme != kNoScheme || !config.qat.overrides.empty();
}

std::vector<qat::LayerDecision> prepare_qat(const TrainConfig& config, nn::Transformer& model) {
  if (!uses_qat(config)) {
    return {};
  }
  try {
    return qat::prepare(model, prepare_config(config));
  } catch (const c10::Error& error) {
    throw ConfigError("qat: " + std::string(error.what_without_backtrace()));
  }
}

void describe_qat(const TrainConfig& config, const std::vector<qat::LayerDecision>& decisions) {
  if (decisions.empty()) {
    return;
  }
  std::fprintf(stderr, "qat %s: fake quantization from step %ld on\n", config.qat.scheme.c_str(),
               config.qat.fake_quant_after_n_steps + 1);
  for (const std::string& line : qat::describe(decisions)) {
    std::fprintf(stderr, "  %s\n", line.c_str());
  }
}

fsdp::ShardInitializer with_learned_ranges(const TrainConfig& config,
                                           const std::vector<qat::LayerDecision>& decisions,
                                           fsdp::ShardInitializer initialize) {
  if (!config.qat.learned_ranges) {
    return initialize;
  }
  std::map<std::string, qat::LayerDecision> of_layer;
  for (const qat::LayerDecision& decision : decisions) {
    of_layer.emplace(decision.fqn, decision);
  }
  const at::ScalarType dtype = parse_dtype(config.training.mixed_precision_param);
  return [of_layer, dtype, initialize](const std::string& fqn, const at::Tensor& shard,
                                       int64_t row_begin) {
    if (!qat::is_learned_range(fqn)) {
      initialize(fqn, shard, row_begin);
      return;
    }
    const qat::LayerDecision& layer = of_layer.at(owner_of(fqn));
    const at::Tensor weight = at::zeros({shard.size(0), layer.cols}, shard.options());
    initialize(owner_of(fqn) + ".weight", weight, row_begin);
    fill_range(fqn, weight, dtype, layer.scheme->weight, shard);
  };
}

std::unique_ptr<StepAction> make_qat_action(const TrainConfig& config, nn::Transformer& model) {
  return std::make_unique<QATAction>(config, model);
}

}  // namespace narrowgauge::trainer

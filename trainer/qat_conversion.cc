#include "trainer/qat_conversion.h"

#include <c10/util/Exception.h>

#include <cstdio>
#include <string>

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
  return prepare;
}

class QATAction final : public StepAction {
 public:
  QATAction(int64_t after_n_steps, nn::Transformer& model)
      : after_n_steps_(after_n_steps), model_(model) {
    enable(after_n_steps == 0);
  }

  void before_step(int64_t step) override {
    if (enabled_ != (step > after_n_steps_)) {
      enable(step > after_n_steps_);
      began_ = enabled_ && step > 1;
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

std::unique_ptr<StepAction> make_qat_action(const TrainConfig& config, nn::Transformer& model) {
  return std::make_unique<QATAction>(config.qat.fake_quant_after_n_steps, model);
}

}  // namespace narrowgauge::trainer

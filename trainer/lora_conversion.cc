#include "trainer/lora_conversion.h"

#include <c10/util/Exception.h>

#include <cstdio>
#include <string>

namespace narrowgauge::trainer {
namespace {

class DropoutAction final : public StepAction {
 public:
  DropoutAction(const TrainConfig& config, nn::Transformer& model)
      : seq_len_(config.training.seq_len),
        position_(lora::set_dropout(model, static_cast<uint64_t>(config.training.seed))) {}

  void before_step(int64_t step) override { position_->step = step; }

  void before_forward(int64_t first_sample) override {
    position_->is_training = true;
    position_->first_row = first_sample * seq_len_;
  }

  // Validation and samples may follow.
  void after_backward() override { position_->is_training = false; }

 private:
  const int64_t seq_len_;
  const std::shared_ptr<lora::BatchPosition> position_;
};

}  // namespace

lora::LoRASpec lora_spec(const TrainConfig& config) {
  return {config.lora.rank, config.lora.alpha, config.lora.dropout};
}

lora::Adapted add_adapters(const TrainConfig& config, nn::Transformer& model) {
  if (config.lora.rank == 0) {
    return {};
  }
  try {
    return lora::add_adapters(model, lora_spec(config),
                              {config.lora.targets, config.lora.modules_to_save});
  } catch (const c10::Error& error) {
    throw ConfigError("lora: " + std::string(error.what_without_backtrace()));
  }
}

std::unique_ptr<StepAction> make_dropout_action(const TrainConfig& config, nn::Transformer& model) {
  return std::make_unique<DropoutAction>(config, model);
}

void describe_adapters(const TrainConfig& config, const lora::Adapted& adapted,
                       const nn::Transformer& model) {
  if (adapted.linears.empty()) {
    return;
  }
  int64_t trained = 0;
  int64_t all = 0;
  for (const auto& parameter : model.parameters()) {
    all += parameter.numel();
    trained += parameter.requires_grad() ? parameter.numel() : 0;
  }
  const std::string saved =
      adapted.modules_to_save.empty()
          ? ""
          : std::to_string(adapted.modules_to_save.size()) + " other layers train in full, ";
  std::fprintf(stderr,
               "lora rank %ld: %zu linears have adapters, %s%ld of %ld parameters are trained\n",
               config.lora.rank, adapted.linears.size(), saved.c_str(), trained, all);
}

}  // namespace narrowgauge::trainer

#include "trainer/lora_conversion.h"

#include <c10/util/Exception.h>

#include <cstdio>

#include "lora/adapters.h"

namespace narrowgauge::trainer {

lora::LoRASpec lora_spec(const TrainConfig& config) {
  return {config.lora.rank, config.lora.alpha};
}

std::vector<std::string> add_adapters(const TrainConfig& config, nn::Transformer& model) {
  if (config.lora.rank == 0) {
    return {};
  }
  try {
    return lora::add_adapters(model, lora_spec(config), config.lora.targets);
  } catch (const c10::Error& error) {
    throw ConfigError("lora.targets: " + std::string(error.what_without_backtrace()));
  }
}

void describe_adapters(const TrainConfig& config, const std::vector<std::string>& adapted,
                       const nn::Transformer& model) {
  if (adapted.empty()) {
    return;
  }
  int64_t trained = 0;
  int64_t all = 0;
  for (const auto& parameter : model.parameters()) {
    all += parameter.numel();
    trained += parameter.requires_grad() ? parameter.numel() : 0;
  }
  std::fprintf(stderr,
               "lora rank %ld: %zu linears have adapters, %ld of %ld parameters are trained\n",
               config.lora.rank, adapted.size(), trained, all);
}

}  // namespace narrowgauge::trainer

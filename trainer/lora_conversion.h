#pragma once

#include <memory>

#include "lora/adapters.h"
#include "lora/lora_linear.h"
#include "nn/transformer.h"
#include "trainer/config.h"
#include "trainer/step_action.h"

namespace narrowgauge::trainer {

// REQUIRES: config.lora.rank > 0.
lora::LoRASpec lora_spec(const TrainConfig& config);

// Gives the linears that section `lora` names adapters and freezes all else but its modules to
// save; nothing if its rank is 0. After prepare_qat, before fully_shard. Throws ConfigError.
lora::Adapted add_adapters(const TrainConfig& config, nn::Transformer& model);

// Tells the adapters which rows of which step they see, for the masks of lora.dropout.
std::unique_ptr<StepAction> make_dropout_action(const TrainConfig& config, nn::Transformer& model);

// For people, on standard error: how many parameters are trained.
void describe_adapters(const TrainConfig& config, const lora::Adapted& adapted,
                       const nn::Transformer& model);

}  // namespace narrowgauge::trainer

#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "lora/adapters.h"
#include "qat/prepared_layer.h"
#include "trainer/config.h"
#include "trainer/run_directory.h"

namespace narrowgauge::trainer {

// What a run has trained, as one rank sees it.
struct TrainedModel {
  const TrainConfig& config;
  const RunDirectory& run;
  const data::Tokenizer* tokenizer;  // may be null
  // Whole parameters by our name, adapters apart. May be collective: every rank makes the same
  // calls in the same order.
  std::function<at::Tensor(const std::string& name)> full_parameter;
  std::vector<qat::PreparedLayer> prepared;
  lora::Adapted adapted;
  bool writes = true;  // false: another rank does
};

// Writes what the run is to leave behind:
//   hf/         the model as a Hugging Face directory, adapters merged
//   quantized/  with qat: the codes and scales that the last forward computed with (see
//               quantization/quantized_model.h), beside config.json and the tokenizer's files
//   adapter/    with lora: the adapters and modules to save alone, as the peft library has them
// Throws std::runtime_error for a disk that is full or a directory that is not an export's.
void export_trained(const TrainedModel& model);

}  // namespace narrowgauge::trainer

#include "trainer/trained_exports.h"

#include <cstdio>
#include <filesystem>

#include "checkpoint/huggingface_names.h"
#include "lora/adapters.h"
#include "qat/convert.h"
#include "trainer/dtype.h"
#include "trainer/export_run.h"
#include "trainer/lora_conversion.h"

namespace narrowgauge::trainer {
namespace {

namespace fs = std::filesystem;

using FullParameter = std::function<at::Tensor(const std::string& name)>;

// Takes part in what another rank's writer asks for.
void ask_for_all(const TrainedModel& model, const FullParameter& full_parameter) {
  for (const checkpoint::ParameterSpec& spec : checkpoint::parameter_specs(model.config.model)) {
    full_parameter(spec.name);
  }
}

// Adapters are merged in the dtype of forward where forward merged them, else in fp32.
FullParameter merged(const TrainedModel& model) {
  if (model.adapted.linears.empty()) {
    return model.full_parameter;
  }
  const at::ScalarType dtype = model.prepared.empty()
                                   ? at::kFloat
                                   : parse_dtype(model.config.training.mixed_precision_param);
  return lora::merged_parameters(model.full_parameter, model.adapted.linears,
                                 lora_spec(model.config), dtype);
}

// Everything but weights, which the quantized file holds.
void copy_descriptions(const fs::path& from, const fs::path& to) {
  for (const fs::directory_entry& entry : fs::directory_iterator(from)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_regular_file() && name.find(".safetensors") == std::string::npos) {
      fs::copy_file(entry.path(), to / name, fs::copy_options::overwrite_existing);
    }
  }
}

void export_quantized(const TrainedModel& model, const FullParameter& full_parameter) {
  if (!model.writes) {
    for (const std::string& name : qat::parameters_to_convert(model.config.model, model.prepared)) {
      full_parameter(name);
    }
    return;
  }
  const fs::path directory = model.run.path() / "quantized";
  const auto quantized = qat::convert(model.config.model, model.prepared,
                                      parse_dtype(model.config.training.mixed_precision_param),
                                      parse_dtype(model.config.export_.dtype), full_parameter);
  quantization::write_quantized_model(directory, quantized);
  copy_descriptions(model.run.huggingface(), directory);
  std::fprintf(stderr, "exported %s: %zu quantized weights\n", directory.c_str(),
               quantized.weights.size());
}

void export_adapter(const TrainedModel& model) {
  if (!model.writes) {
    for (const std::string& name : lora::trained_parameters(model.config.model, model.adapted)) {
      model.full_parameter(name);
    }
    return;
  }
  const fs::path directory = model.run.path() / "adapter";
  lora::write_peft_adapter(directory, model.config.model, lora_spec(model.config),
                           model.config.model.initial_load_path, model.adapted,
                           model.full_parameter);
  std::fprintf(stderr, "exported %s\n", directory.c_str());
}

}  // namespace

void export_trained(const TrainedModel& model) {
  const FullParameter full_parameter = merged(model);
  if (model.writes) {
    export_huggingface_directory(model.run, model.config.model, model.tokenizer,
                                 model.run.huggingface(), parse_dtype(model.config.export_.dtype),
                                 full_parameter);
    std::fprintf(stderr, "exported %s\n", model.run.huggingface().c_str());
  } else {
    // The writer gathers each parameter in this order.
    ask_for_all(model, full_parameter);
  }
  if (!model.prepared.empty()) {
    export_quantized(model, full_parameter);
  }
  if (!model.adapted.linears.empty()) {
    export_adapter(model);
  }
}

}  // namespace narrowgauge::trainer

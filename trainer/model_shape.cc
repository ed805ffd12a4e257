#include "trainer/model_shape.h"

#include <filesystem>

#include "checkpoint/durable_file.h"
#include "checkpoint/huggingface_config.h"

namespace narrowgauge::trainer {

void fill_model_shape(ModelConfig& model, const RunDirectory& run) {
  if (model.initial_load_path.empty()) {
    return;
  }
  const checkpoint::HuggingFaceConfig base =
      std::filesystem::exists(run.base_config_file())
          ? checkpoint::parse_huggingface_config(checkpoint::read_file(run.base_config_file()),
                                                 run.base_config_file().string())
          : checkpoint::read_huggingface_config(model.initial_load_path);
  static_cast<nn::TransformerConfig&>(model) = base.transformer;
}

}  // namespace narrowgauge::trainer

#include "trainer/model_shape.h"

#include "checkpoint/huggingface_config.h"

namespace narrowgauge::trainer {

void fill_model_shape(ModelConfig& model) {
  if (!model.initial_load_path.empty()) {
    static_cast<nn::TransformerConfig&>(model) =
        checkpoint::read_huggingface_config(model.initial_load_path).transformer;
  }
}

}  // namespace narrowgauge::trainer

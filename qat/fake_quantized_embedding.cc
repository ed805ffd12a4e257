#include "qat/fake_quantized_embedding.h"

#include <utility>

#include "qat/fake_quantize.h"

namespace narrowgauge::qat {

FakeQuantizedEmbedding::FakeQuantizedEmbedding(const nn::Embedding& source,
                                               quantization::Scheme scheme)
    : nn::Embedding(source), scheme_(std::move(scheme)) {
  const quantization::QuantizationSpec& spec = scheme_.weight;
  TORCH_CHECK(spec.granularity != quantization::Granularity::kPerTensor &&
                  spec.grid != quantization::Grid::kNvfp4,
              "expected a scheme with scales by row or group for an embedding, got ", scheme_.name,
              "; choose another one for it");
}

at::Tensor FakeQuantizedEmbedding::forward(const at::Tensor& tokens) {
  const at::Tensor rows = nn::Embedding::forward(tokens);
  return enabled_ ? fake_quantize(rows, scheme_.weight) : rows;
}

}  // namespace narrowgauge::qat

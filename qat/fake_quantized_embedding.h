#pragma once

#include <ATen/core/Tensor.h>

#include "nn/embedding.h"
#include "quantization/quantization_spec.h"
#include "quantization/scheme.h"

namespace narrowgauge::qat {

// An Embedding whose rows have the values they will have once the table is quantized. Only the rows
// that are looked up are fake-quantized: scales belong to a row or to a part of one, so that is the
// same. Inputs are token ids: the scheme's activation means nothing here.
class FakeQuantizedEmbedding : public nn::Embedding {
 public:
  // Shares the table with `source`. Throws c10::Error for a scheme whose scales span rows (per
  // tensor, NVFP4).
  FakeQuantizedEmbedding(const nn::Embedding& source, quantization::Scheme scheme);

  const quantization::Scheme& scheme() const { return scheme_; }
  void set_fake_quant_enabled(bool enabled) { enabled_ = enabled; }

 protected:
  at::Tensor forward(const at::Tensor& tokens) override;

 private:
  const quantization::Scheme scheme_;
  bool enabled_ = true;
};

}  // namespace narrowgauge::qat

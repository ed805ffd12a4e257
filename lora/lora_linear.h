#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "lora/adapter_dropout.h"
#include "nn/linear.h"
#include "qat/fake_quantized_linear.h"

// Low-rank adaptation (Hu et al. 2021): beside a frozen weight W [out, in] two small matrices are
// trained, A [rank, in] and B [out, rank], and the layer computes with W + (alpha / rank) B A.
// B begins at zero, so that training begins at the model that was loaded.
namespace narrowgauge::lora {

struct LoRASpec {
  int64_t rank = 0;
  double alpha = 16.0;
  double dropout = 0.0;  // share of the adapter's input, while training; see set_dropout

  double scaling() const { return alpha / static_cast<double>(rank); }
};

// W + scaling B A in their dtype, with the sum in the product's accumulator: what forward of a
// LoRAFakeQuantizedLinear quantizes and what merging writes are one function, so the same bits.
// Differentiable.
at::Tensor merged_weight(const at::Tensor& weight, const at::Tensor& lora_A,
                         const at::Tensor& lora_B, const LoRASpec& spec);

// y = x W^T + bias + scaling (dropout(x) A^T) B^T: two thin products, W is never formed.
class LoRALinear : public nn::Linear {
 public:
  // Shares weight and bias with `source`; A and B are empty, in the weight's dtype and device.
  LoRALinear(const nn::Linear& source, const LoRASpec& spec);

  const LoRASpec lora_spec;
  at::Tensor lora_A;  // [rank, in_features]
  at::Tensor lora_B;  // [out_features, rank]
  AdapterDropout dropout;

 protected:
  at::Tensor forward(const at::Tensor& x) override;
};

// The weight that is quantized is the merged one, which is what will be served: quantizing W alone
// and adding the adapter after it, as torchtune does, trains a model that merging then changes.
// Merged, the adapter has no input of its own to drop elements of. What dropout changes of its
// share of the output is added behind the quantized product: scaling ((dropout(x) - x) A^T) B^T, 0
// on average. While fake quantization is off the sum is LoRALinear's.
class LoRAFakeQuantizedLinear : public qat::FakeQuantizedLinear {
 public:
  LoRAFakeQuantizedLinear(const qat::FakeQuantizedLinear& source, const LoRASpec& spec);

  bool reads_weight_alone() const override { return false; }

  const LoRASpec lora_spec;
  at::Tensor lora_A;
  at::Tensor lora_B;
  AdapterDropout dropout;

 protected:
  at::Tensor forward(const at::Tensor& x) override;
};

}  // namespace narrowgauge::lora

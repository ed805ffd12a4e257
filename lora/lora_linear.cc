#include "lora/lora_linear.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>

namespace narrowgauge::lora {
namespace {

void check_spec(const LoRASpec& spec) {
  TORCH_CHECK(spec.rank >= 1 && spec.alpha > 0,
              "expected rank of at least 1 and alpha above 0, got ", spec.rank, " and ",
              spec.alpha);
  TORCH_CHECK(spec.dropout >= 0 && spec.dropout < 1,
              "expected dropout of at least 0 and below 1, got ", spec.dropout);
}

at::Tensor empty_like_weight(const at::Tensor& weight, int64_t rows, int64_t cols) {
  return at::empty({rows, cols}, weight.options().requires_grad(false));
}

}  // namespace

at::Tensor merged_weight(const at::Tensor& weight, const at::Tensor& lora_A,
                         const at::Tensor& lora_B, const LoRASpec& spec) {
  return at::addmm(weight, lora_B, lora_A, /*beta=*/1, /*alpha=*/spec.scaling());
}

LoRALinear::LoRALinear(const nn::Linear& source, const LoRASpec& spec)
    : nn::Linear(source), lora_spec(spec) {
  check_spec(spec);
  add_parameter("lora_A", lora_A, empty_like_weight(weight, spec.rank, this->spec.in_features));
  add_parameter("lora_B", lora_B, empty_like_weight(weight, this->spec.out_features, spec.rank));
}

at::Tensor LoRALinear::forward(const at::Tensor& x) {
  const auto mask = dropout.mask(spec.in_features);
  const at::Tensor low = mask ? nn::dropout_linear(x, lora_A, *mask) : at::linear(x, lora_A);
  return at::linear(x, weight, bias).add(at::linear(low, lora_B), lora_spec.scaling());
}

LoRAFakeQuantizedLinear::LoRAFakeQuantizedLinear(const qat::FakeQuantizedLinear& source,
                                                 const LoRASpec& spec)
    : qat::FakeQuantizedLinear(source, source.scheme()), lora_spec(spec) {
  check_spec(spec);
  add_parameter("lora_A", lora_A, empty_like_weight(weight, spec.rank, this->spec.in_features));
  add_parameter("lora_B", lora_B, empty_like_weight(weight, this->spec.out_features, spec.rank));
}

at::Tensor LoRAFakeQuantizedLinear::forward(const at::Tensor& x) {
  const at::Tensor y = qat::fake_quantized_linear(
      x, merged_weight(weight, lora_A, lora_B, lora_spec), bias, shared_state());
  auto mask = dropout.mask(spec.in_features);
  if (!mask) {
    return y;
  }
  mask->is_difference = true;
  return y.add(at::linear(nn::dropout_linear(x, lora_A, *mask), lora_B), lora_spec.scaling());
}

}  // namespace narrowgauge::lora

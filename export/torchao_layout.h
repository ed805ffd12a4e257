#pragma once

#include "export/weight_layout.h"

// Note: torchao's tensors in safetensors files
//
// torchao 0.17 (prototype/safetensors) takes a tensor subclass apart: the weight of module M
// becomes M._weight_qdata, M._weight_scale, ...; __metadata__ names the class and its attributes
// under "M.weight", and lists every tensor of the model under "tensor_names". transformers puts
// them together again, so what it computes with are exactly these tensors. config.json names the
// configuration that would have quantized them, at version 2, the one that torchao keeps.

namespace narrowgauge::exports {

// transformers and vLLM with torchao >= 0.15.
//
// scheme                                          tensor class
// intx-weight-only, int8-dynamic-act-int4-weight, IntxUnpackedToInt8Tensor
//   int8-dynamic-act-intx-weight
// int8-weight-only, int8-dynamic-act-int8-weight  Int8Tensor
// float8-weight-only,                             Float8Tensor
//   float8-dynamic-act-float8-weight
// int4-weight-only, float8-act-int4-weight        Int4Tensor (bf16)
// mxfp8, mxfp4                                    MXTensor
std::unique_ptr<WeightLayout> torchao_layout();

}  // namespace narrowgauge::exports

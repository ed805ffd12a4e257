#pragma once

#include "export/blockwise_fp8.h"
#include "export/weight_layout.h"

namespace narrowgauge::exports {

// DeepSeek's "fp8" format, which vLLM, SGLang and transformers read: weight e4m3, weight_scale_inv
// fp32. Takes blockwise_fp8_scheme() alone.
std::unique_ptr<WeightLayout> fine_grained_fp8_layout();

}  // namespace narrowgauge::exports

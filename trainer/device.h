#pragma once

#include <c10/core/Device.h>

#include <string>

namespace narrowgauge::trainer {

// training.device as a device: "cpu", "cuda" (the GPU numbered local_rank), or "auto" (a GPU where
// there is one). libtorch's CUDA half is loaded here and only when it is wanted: it costs 0.2 s and
// a run on the CPU has no use for it. Throws ConfigError if "cuda" is asked for and there is no
// usable GPU.
c10::Device select_device(const std::string& name, int local_rank);

}  // namespace narrowgauge::trainer

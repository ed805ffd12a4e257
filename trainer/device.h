#pragma once

#include <c10/core/Device.h>

#include <string>

namespace narrowgauge::trainer {

// training.device as a device: "cpu", "cuda", or "auto" (a GPU where there is one that can be used).
// libtorch's CUDA half is loaded here and only when it is wanted: it costs 0.2 s and a run on the CPU has no
// use for it. Ranks exchange tensors of the CPU only, so a GPU serves a run of one rank. Throws ConfigError
// if "cuda" is asked for and cannot be had.
c10::Device select_device(const std::string& name, int world_size);

}  // namespace narrowgauge::trainer

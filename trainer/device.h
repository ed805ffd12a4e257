#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <string>

namespace narrowgauge::trainer {

// `name` as a device for a process on its own: "cpu", "cuda", or "auto" (a GPU where there is one
// that can be used, said on standard error where not). libtorch's CUDA half is loaded here and only
// when it is wanted: it costs 0.2 s and the CPU has no use for it. Throws ConfigError if "cuda" is
// asked for and cannot be had. For ranks: trainer/rank_device.h.
c10::Device select_device(const std::string& name);

// The most memory a run on `device` has used so far: bytes allocated on a GPU, or this process's
// resident set.
int64_t peak_memory_bytes(c10::Device device);

}  // namespace narrowgauge::trainer

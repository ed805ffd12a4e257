#include "trainer/device.h"

#include <c10/core/CachingDeviceAllocator.h>

#include <cstdio>

#include "cuda/libtorch_cuda.h"
#include "trainer/config.h"
#include "trainer/metrics.h"

namespace narrowgauge::trainer {

c10::Device select_device(const std::string& name) {
  if (name == "cpu" || (name == "auto" && !cuda::has_driver())) {
    return c10::kCPU;
  }
  const std::string problem = cuda::load_libtorch_cuda();
  if (problem.empty()) {
    return {c10::kCUDA, 0};
  }
  if (name == "auto") {
    std::fprintf(stderr, "on the CPU, since the GPU cannot be used: %s\n", problem.c_str());
    return c10::kCPU;
  }
  throw ConfigError("cannot use 'cuda': " + problem + "; use the device cpu");
}

int64_t peak_memory_bytes(c10::Device device) {
  if (device.is_cpu()) {
    return peak_resident_bytes();
  }
  constexpr auto kAllPools = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return c10::getDeviceAllocator(device.type())
      ->getDeviceStats(device.index())
      .allocated_bytes[kAllPools]
      .peak;
}

}  // namespace narrowgauge::trainer

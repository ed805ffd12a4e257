#include "trainer/device.h"

#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <dlfcn.h>

#include <cstdio>
#include <filesystem>

#include "trainer/config.h"
#include "trainer/metrics.h"

namespace narrowgauge::trainer {
namespace {

namespace fs = std::filesystem;

bool has_nvidia_driver() { return fs::exists("/dev/nvidiactl"); }

// libtorch_cuda.so stands beside the libtorch_cpu.so that this process runs with.
fs::path cuda_library() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&at::globalContext), &info) == 0) {
    return "libtorch_cuda.so";
  }
  return fs::weakly_canonical(info.dli_fname).parent_path() / "libtorch_cuda.so";
}

// Empty when a GPU can be used, else the reason.
std::string load_cuda(int world_size) {
  if (!has_nvidia_driver()) {
    return "this machine has no NVIDIA driver (/dev/nvidiactl is missing)";
  }
  if (world_size > 1) {
    return "several ranks exchange tensors of the CPU only";
  }
  if (dlopen(cuda_library().c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    return dlerror();
  }
  return at::hasCUDA() ? "" : "libtorch sees no GPU";
}

}  // namespace

c10::Device select_device(const std::string& name, int world_size) {
  if (name == "cpu" || (name == "auto" && !has_nvidia_driver())) {
    return c10::kCPU;
  }
  const std::string problem = load_cuda(world_size);
  if (problem.empty()) {
    return {c10::kCUDA, 0};
  }
  if (name == "auto") {
    std::fprintf(stderr, "on the CPU, since the GPU cannot be used: %s\n", problem.c_str());
    return c10::kCPU;
  }
  throw ConfigError("training.device: cannot use 'cuda': " + problem + "; use training.device=cpu");
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

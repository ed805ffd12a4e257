#include "trainer/device.h"

#include <ATen/Context.h>
#include <dlfcn.h>

#include <filesystem>

#include "trainer/config.h"

namespace narrowgauge::trainer {
namespace {

bool has_nvidia_driver() { return std::filesystem::exists("/dev/nvidiactl"); }

// Empty when libtorch's CUDA half is loaded and sees a GPU, else the reason.
std::string load_cuda() {
  if (!has_nvidia_driver()) {
    return "this machine has no NVIDIA driver (/dev/nvidiactl is missing)";
  }
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    return dlerror();
  }
  return at::hasCUDA() ? "" : "libtorch sees no GPU";
}

}  // namespace

c10::Device select_device(const std::string& name, int world_size) {
  if (name == "cpu" || (name == "auto" && (!has_nvidia_driver() || world_size > 1))) {
    return c10::kCPU;
  }
  const std::string problem =
      world_size > 1 ? "several ranks exchange tensors of the CPU only" : load_cuda();
  if (problem.empty()) {
    return {c10::kCUDA, 0};
  }
  if (name == "auto") {
    return c10::kCPU;
  }
  throw ConfigError("training.device: cannot use 'cuda': " + problem + "; use training.device=cpu");
}

}  // namespace narrowgauge::trainer

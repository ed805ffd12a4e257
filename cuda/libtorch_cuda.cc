#include "cuda/libtorch_cuda.h"

#include <ATen/Context.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <array>
#include <filesystem>

namespace narrowgauge::cuda {
namespace {

namespace fs = std::filesystem;

// libtorch_cuda.so stands beside the libtorch_cpu.so that this process runs with.
fs::path library() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&at::globalContext), &info) == 0) {
    return "libtorch_cuda.so";
  }
  return fs::weakly_canonical(info.dli_fname).parent_path() / "libtorch_cuda.so";
}

}  // namespace

bool has_driver() { return fs::exists("/dev/nvidiactl"); }

std::string load_libtorch_cuda() {
  if (!has_driver()) {
    return "this machine has no NVIDIA driver (/dev/nvidiactl is missing)";
  }
  if (dlopen(library().c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    return dlerror();
  }
  return at::hasCUDA() ? "" : "libtorch sees no GPU";
}

int num_gpus() { return c10::impl::VirtualGuardImpl(c10::kCUDA).deviceCount(); }

std::string pci_bus_id(int gpu) {
  std::array<char, 32> text{};
  const cudaError_t error = cudaDeviceGetPCIBusId(text.data(), text.size(), gpu);
  TORCH_CHECK(error == cudaSuccess, "cudaDeviceGetPCIBusId of GPU ", gpu,
              " failed: ", cudaGetErrorString(error));
  return text.data();
}

}  // namespace narrowgauge::cuda

#include "comm/nccl_library.h"

#include <c10/core/GradMode.h>
#include <dlfcn.h>

#include <filesystem>
#include <stdexcept>

namespace narrowgauge::comm {
namespace {

constexpr const char* kName = "libnccl.so.2";

// Where the wheels put it, seen from libc10.so: torch/lib beside nvidia/nccl/lib.
std::string path_beside_libtorch() {
  Dl_info info{};
  // Any function of libc10 tells where it lies.
  if (dladdr(reinterpret_cast<const void*>(&c10::GradMode::is_enabled), &info) == 0) {
    return kName;
  }
  const auto site =
      std::filesystem::weakly_canonical(info.dli_fname).parent_path().parent_path().parent_path();
  return site / "nvidia/nccl/lib" / kName;
}

template <typename Function>
void find(void* handle, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, name));
  if (function == nullptr) {
    throw std::runtime_error(std::string("NCCL lacks the function ") + name +
                             "; install NCCL 2.28 or later");
  }
}

}  // namespace

std::shared_ptr<const NcclLibrary> NcclLibrary::load() {
  // libtorch's CUDA half brings its own, which must stay the only one.
  if (void* loaded = dlopen(kName, RTLD_NOW | RTLD_NOLOAD)) {
    return std::shared_ptr<const NcclLibrary>(new NcclLibrary(loaded));
  }
  const std::string beside = path_beside_libtorch();
  try {
    return load(beside);
  } catch (const std::runtime_error& first) {
    try {
      return load(kName);
    } catch (const std::runtime_error& second) {
      throw std::runtime_error(std::string(first.what()) + "; and " + second.what());
    }
  }
}

std::shared_ptr<const NcclLibrary> NcclLibrary::load(const std::string& path) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    throw std::runtime_error("cannot load NCCL: " + std::string(dlerror()) +
                             "; install the wheel nvidia-nccl-cu13 beside torch");
  }
  return std::shared_ptr<const NcclLibrary>(new NcclLibrary(handle));
}

NcclLibrary::NcclLibrary(void* handle) : handle_(handle) {
  try {
    find(handle, "ncclGetVersion", get_version);
    find(handle, "ncclGetUniqueId", get_unique_id);
    find(handle, "ncclCommInitRankConfig", comm_init_rank_config);
    find(handle, "ncclCommSplit", comm_split);
    find(handle, "ncclCommFinalize", comm_finalize);
    find(handle, "ncclCommDestroy", comm_destroy);
    find(handle, "ncclCommAbort", comm_abort);
    find(handle, "ncclCommGetAsyncError", comm_get_async_error);
    find(handle, "ncclCommCount", comm_count);
    find(handle, "ncclCommUserRank", comm_user_rank);
    find(handle, "ncclGetErrorString", get_error_string);
    find(handle, "ncclGetLastError", get_last_error);
    find(handle, "ncclAllGather", all_gather);
    find(handle, "ncclReduceScatter", reduce_scatter);
    find(handle, "ncclAllReduce", all_reduce);
    find(handle, "ncclBroadcast", broadcast);
  } catch (...) {
    dlclose(handle);
    throw;
  }
}

NcclLibrary::~NcclLibrary() { dlclose(handle_); }

}  // namespace narrowgauge::comm

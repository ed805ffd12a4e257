#pragma once

#include <nccl.h>

#include <memory>
#include <string>

namespace narrowgauge::comm {

// NCCL's functions, from a library that is opened when they are first wanted: it weighs hundreds of
// megabytes, and a run on the CPU starts without it.
class NcclLibrary {
 public:
  // The libnccl.so.2 that the process has loaded already, the one installed beside libtorch, or the
  // system's. Throws std::runtime_error with what was tried.
  static std::shared_ptr<const NcclLibrary> load();
  // One at a given path.
  static std::shared_ptr<const NcclLibrary> load(const std::string& path);

  ~NcclLibrary();
  NcclLibrary(const NcclLibrary&) = delete;
  NcclLibrary& operator=(const NcclLibrary&) = delete;

  // Named as NCCL names them, without the prefix.
  decltype(&ncclGetVersion) get_version = nullptr;
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRankConfig) comm_init_rank_config = nullptr;
  decltype(&ncclCommSplit) comm_split = nullptr;
  decltype(&ncclCommFinalize) comm_finalize = nullptr;
  decltype(&ncclCommDestroy) comm_destroy = nullptr;
  decltype(&ncclCommAbort) comm_abort = nullptr;
  decltype(&ncclCommGetAsyncError) comm_get_async_error = nullptr;
  decltype(&ncclCommCount) comm_count = nullptr;
  decltype(&ncclCommUserRank) comm_user_rank = nullptr;
  decltype(&ncclGetErrorString) get_error_string = nullptr;
  decltype(&ncclGetLastError) get_last_error = nullptr;
  decltype(&ncclAllGather) all_gather = nullptr;
  decltype(&ncclReduceScatter) reduce_scatter = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclBroadcast) broadcast = nullptr;

 private:
  explicit NcclLibrary(void* handle);

  void* handle_;
};

}  // namespace narrowgauge::comm

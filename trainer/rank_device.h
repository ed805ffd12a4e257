#pragma once

#include <c10/core/Device.h>

#include <string>
#include <vector>

#include "comm/communicator.h"

namespace narrowgauge::trainer {

// Which of its host's ranks this one is.
struct LocalRank {
  int rank = 0;
  int size = 1;
};

// training.device as a device for one of several ranks: "cpu", "cuda", where each rank has a GPU of
// its own, or "auto": "cuda" if all ranks can, else all on the CPU, which rank 0 says on standard
// error if there is a GPU at all. A rank takes the GPU of its place on the host, or the only one
// that its launcher lets it use. The GPU becomes current for the calling thread. Throws
// ConfigError, with one text on all ranks, if "cuda" is asked for and cannot be had. Collective.
c10::Device select_rank_device(const std::string& name, const LocalRank& local,
                               comm::Communicator& world);

// What one rank has found.
struct FoundGpu {
  enum class Kind { kUsable, kUnusable, kNoDriver };
  Kind kind = Kind::kNoDriver;
  std::string text;  // which GPU, as "host, GPU 0000:3B:00.0", or why there is none
};

// Why not every rank has a GPU of its own, with a remedy; empty if it has. by_rank: in rank order.
std::string problem_with_gpus(const std::vector<FoundGpu>& by_rank);

}  // namespace narrowgauge::trainer

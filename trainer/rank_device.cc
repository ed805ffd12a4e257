#include "trainer/rank_device.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>

#include "checkpoint/rank_agreement.h"
#include "cuda/libtorch_cuda.h"
#include "trainer/config.h"

namespace narrowgauge::trainer {
namespace {

using Kind = FoundGpu::Kind;

std::string host_name() {
  std::array<char, 256> name{};
  return gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "unknown host";
}

// A launcher that gives each rank one GPU shows it that one alone.
int index_of_gpu(const LocalRank& local) { return cuda::num_gpus() == 1 ? 0 : local.rank; }

FoundGpu find_gpu(const LocalRank& local) {
  const std::string problem = cuda::load_libtorch_cuda();
  if (!problem.empty()) {
    return {cuda::has_driver() ? Kind::kUnusable : Kind::kNoDriver, host_name() + ": " + problem};
  }
  const int index = index_of_gpu(local);
  if (index >= cuda::num_gpus()) {
    return {Kind::kUnusable, host_name() + ": " + std::to_string(cuda::num_gpus()) + " GPUs for " +
                                 std::to_string(local.size) + " ranks"};
  }
  return {Kind::kUsable, host_name() + ", GPU " + cuda::pci_bus_id(index)};
}

std::vector<FoundGpu> gather(const FoundGpu& mine, comm::Communicator& world) {
  std::vector<FoundGpu> by_rank;
  const std::string message = static_cast<char>('0' + static_cast<int>(mine.kind)) + mine.text;
  for (const std::string& text : checkpoint::all_gather_text(world, message)) {
    by_rank.push_back({static_cast<Kind>(text.at(0) - '0'), text.substr(1)});
  }
  return by_rank;
}

}  // namespace

std::string problem_with_gpus(const std::vector<FoundGpu>& by_rank) {
  std::map<std::string, size_t> owners;
  for (size_t rank = 0; rank < by_rank.size(); ++rank) {
    const FoundGpu& found = by_rank[rank];
    if (found.kind != Kind::kUsable) {
      return (by_rank.size() == 1 ? "" : "rank " + std::to_string(rank) + " on ") + found.text +
             (found.kind == Kind::kUnusable ? "; start one rank for each GPU" : "");
    }
    const auto [owner, is_first] = owners.emplace(found.text, rank);
    if (!is_first) {
      return "ranks " + std::to_string(owner->second) + " and " + std::to_string(rank) +
             " have the same one, " + found.text + "; start one rank for each GPU";
    }
  }
  return "";
}

c10::Device select_rank_device(const std::string& name, const LocalRank& local,
                               comm::Communicator& world) {
  if (name == "cpu") {
    return c10::kCPU;
  }
  const std::vector<FoundGpu> by_rank = gather(find_gpu(local), world);
  const std::string problem = problem_with_gpus(by_rank);
  if (problem.empty()) {
    const c10::Device device(c10::kCUDA, static_cast<c10::DeviceIndex>(index_of_gpu(local)));
    c10::impl::VirtualGuardImpl(device.type()).setDevice(device);
    return device;
  }
  if (name == "cuda") {
    throw ConfigError("training.device: cannot use 'cuda': " + problem +
                      "; or use training.device=cpu");
  }
  const bool has_gpu = std::any_of(by_rank.begin(), by_rank.end(), [](const FoundGpu& found) {
    return found.kind != Kind::kNoDriver;
  });
  if (has_gpu && world.rank() == 0) {
    std::fprintf(stderr, "on the CPU, since not every rank can use a GPU: %s\n", problem.c_str());
  }
  return c10::kCPU;
}

}  // namespace narrowgauge::trainer

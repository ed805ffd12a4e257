#include "comm/device_mesh.h"

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "comm/self_communicator.h"
#include "comm/watched_communicator.h"

namespace narrowgauge::comm {
namespace {

int resolved_shard_size(int ranks, int replicate, int shard) {
  const std::string got = ", got " + std::to_string(ranks);
  if (replicate < 1 || (shard < 1 && shard != -1)) {
    throw std::invalid_argument(
        "expected replicate >= 1 and shard >= 1 (or -1 for the rest), got replicate " +
        std::to_string(replicate) + " and shard " + std::to_string(shard));
  }
  if (shard == -1) {
    if (ranks % replicate != 0) {
      throw std::invalid_argument("replicate " + std::to_string(replicate) +
                                  " x shard -1 needs a multiple of " + std::to_string(replicate) +
                                  " ranks" + got);
    }
    return ranks / replicate;
  }
  const int64_t needed = int64_t{replicate} * shard;
  if (needed != ranks) {
    throw std::invalid_argument(
        "replicate " + std::to_string(replicate) + " x shard " + std::to_string(shard) + " needs " +
        std::to_string(needed) + " ranks" + got + "; start as many (mpirun -np " +
        std::to_string(needed) + ") or set data_parallel_shard_degree to -1");
  }
  return shard;
}

// The ranks of one color; without a collective where the axis is trivial.
std::shared_ptr<Communicator> axis(const std::shared_ptr<Communicator>& world, int size, int color,
                                   const char* name) {
  if (size == 1) {
    return std::make_shared<SelfCommunicator>();
  }
  if (size == world->size()) {
    return world;
  }
  auto part = world->split(color, world->rank());
  set_group_name(*part, name);
  return part;
}

}  // namespace

DeviceMesh::DeviceMesh(std::shared_ptr<Communicator> world, int replicate, int shard)
    : world_(std::move(world)) {
  const int shard_size = resolved_shard_size(world_->size(), replicate, shard);
  replicate_ = axis(world_, replicate, world_->rank() % shard_size, "replicate");
  shard_ = axis(world_, shard_size, world_->rank() / shard_size, "shard");
}

}  // namespace narrowgauge::comm

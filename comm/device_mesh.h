#pragma once

#include <memory>

#include "comm/communicator.h"

namespace narrowgauge::comm {

// The ranks as a grid of replicate x shard: parameters are sharded along one axis and replicated
// along the other. rank = replicate index * shard size + shard index, so that a shard axis is a run
// of neighbouring ranks, which a launcher puts on one host. A value: copies share communicators.
class DeviceMesh {
 public:
  // shard -1: as many as the world leaves. Collective over `world`. Throws std::invalid_argument
  // when replicate x shard is not the size of the world.
  DeviceMesh(std::shared_ptr<Communicator> world, int replicate, int shard);

  Communicator& world() const { return *world_; }
  // The ranks that hold the same shard as this one.
  Communicator& replicate_axis() const { return *replicate_; }
  // The ranks that together hold one copy.
  Communicator& shard_axis() const { return *shard_; }

 private:
  std::shared_ptr<Communicator> world_;
  std::shared_ptr<Communicator> replicate_;
  std::shared_ptr<Communicator> shard_;
};

}  // namespace narrowgauge::comm

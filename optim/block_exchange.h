#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "optim/block_layout.h"
#include "optim/kernels/low_bit_adam.h"

namespace narrowgauge::optim {

// Agreement on the largest magnitudes of blocks that several ranks hold in part: one all_reduce of
// two words a block, and none where no boundary cuts a block (a row a multiple of the block size).
class BlockExchange {
 public:
  // layouts: this rank's, one for each quantized parameter, in the same order on every rank.
  // device: of the parameters; comm_device: where shard_axis takes tensors. Collective. shard_axis
  // outlives this; null: one rank, which shares nothing.
  BlockExchange(comm::Communicator* shard_axis, std::span<const BlockLayout> layouts,
                at::Device device, at::Device comm_device);

  bool is_empty() const { return num_slots_ == 0; }
  // Where the first, the last block of a parameter is exchanged; -1 if it is this rank's alone.
  int64_t first_slot(size_t parameter) const { return slots_[parameter].first; }
  int64_t last_slot(size_t parameter) const { return slots_[parameter].last; }

  // A step: clear, put what this rank has, reduce (collective), get what all have. On a GPU its
  // kernels put and get in words().
  void clear();
  void put(int64_t slot, kernels::MomentMaxima maxima);
  void reduce();
  kernels::MomentMaxima get(int64_t slot) const;

  // [slots, 2] int32: as integers, bits order like magnitudes, with NaN on top.
  const at::Tensor& words() const { return words_; }

 private:
  struct Slots {
    int64_t first = -1;
    int64_t last = -1;
  };

  comm::Communicator* shard_axis_;  // not owned
  at::Device comm_device_;
  std::vector<Slots> slots_;
  int64_t num_slots_ = 0;
  at::Tensor words_;
};

}  // namespace narrowgauge::optim

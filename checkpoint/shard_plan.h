#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_manifest.h"
#include "comm/communicator.h"

namespace narrowgauge::checkpoint {

// What one rank holds of a tensor: rows [row_begin, row_begin + local.size(0)), maybe none.
struct ShardChunk {
  std::string name;
  at::Tensor local;                   // any device; [rows, global_sizes[1:]...], or a scalar
  std::vector<int64_t> global_sizes;  // of the whole tensor
  int64_t row_begin = 0;
};

int64_t num_local_rows(const ShardChunk& chunk);

// Throws c10::Error where the local shape is not that of rows of the whole, or they lie outside.
void check_chunk(const ShardChunk& chunk);

// Which rank writes what: a manifest without hashes and file sizes, equal on all ranks.
//
// Each range of rows is written once. Where several ranks hold it (replicated tensors, HSDP
// replicas) the one with the least to write so far does. Rows that none holds, and chunks that
// overlap otherwise, are refused. Collective; throws on every rank.
CheckpointManifest plan_shards(std::span<const ShardChunk> chunks, int64_t step,
                               comm::Communicator& communicator);

// plan_shards, remembered while no rank's chunks change in name, dtype or rows.
class ShardPlanner {
 public:
  // Collective. The manifest is that of the last call if nothing changed, with the new step.
  const CheckpointManifest& plan(std::span<const ShardChunk> chunks, int64_t step,
                                 comm::Communicator& communicator);

 private:
  std::string offer_;  // what this rank held at the last call
  CheckpointManifest plan_;
};

// One chunk of a plan that `rank` writes, and where in `chunks` it is.
struct PlannedChunk {
  size_t index = 0;
  std::string name_in_file;
};

// In the order of `chunks`.
std::vector<PlannedChunk> planned_for(int rank, std::span<const ShardChunk> chunks,
                                      const CheckpointManifest& plan);

// "rank-00003.safetensors"
std::string rank_file_name(int rank);

}  // namespace narrowgauge::checkpoint

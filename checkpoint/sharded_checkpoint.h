#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_manifest.h"
#include "comm/communicator.h"

// Note: one checkpoint, many ranks
//
//   FOLDER/rank-00000.safetensors   the chunks that rank 0 wrote
//          rank-00001.safetensors
//          manifest.json            written last: which chunk holds which rows, and their hashes
//
// Tensors are cut along their rows (dimension 0) only. Whoever loads asks for any rows, so a
// checkpoint of any world size and any sharding of rows loads into any other.

namespace narrowgauge::checkpoint {

// What one rank holds of a tensor: rows [row_begin, row_begin + local.size(0)), maybe none.
struct ShardChunk {
  std::string name;
  at::Tensor local;                   // any device; [rows, global_sizes[1:]...], or a scalar
  std::vector<int64_t> global_sizes;  // of the whole tensor
  int64_t row_begin = 0;
};

// Writes rank files and manifest into `folder`, which exists and is empty, from what all ranks
// hold. Collective. Rows that several ranks hold (replicated tensors, HSDP replicas) are written by
// the lowest of them; rows that none holds, and chunks that overlap otherwise, are refused.
// state_json is an object, taken from rank 0. `communicator` moves CPU tensors.
//
// Where a rank fails (disk full, say) every rank throws, with the rank and its reason.
void write_sharded_checkpoint(const std::filesystem::path& folder, int64_t step,
                              std::span<const ShardChunk> chunks, const std::string& state_json,
                              comm::Communicator& communicator);

// A complete checkpoint on the disk. Every error names the file and the tensor.
class Checkpoint {
 public:
  // Reads and checks the manifest. Throws std::runtime_error.
  static Checkpoint open(const std::filesystem::path& folder);

  const std::filesystem::path& folder() const { return folder_; }
  const CheckpointManifest& manifest() const { return manifest_; }

  // Throws std::runtime_error unless every file is there with the tensors the manifest lists.
  // Reads headers only.
  void verify_structure() const;
  // Also reads every chunk and compares its hash.
  void verify() const;

  // Fills `local` of each destination with its rows. All chunks needed are verified before the
  // first destination is written, so a damaged checkpoint leaves the model as it was. Tensors that
  // the checkpoint holds and nobody asks for are fine; the reverse, another dtype or another shape
  // throws std::runtime_error. Not collective: each rank loads what it needs.
  void load(std::span<const ShardChunk> destinations) const;

 private:
  std::filesystem::path folder_;
  CheckpointManifest manifest_;
};

}  // namespace narrowgauge::checkpoint

#pragma once

#include <filesystem>
#include <memory>
#include <span>

#include "checkpoint/checkpoint_manifest.h"
#include "checkpoint/checkpoint_reader.h"
#include "checkpoint/shard_plan.h"

// Note: one checkpoint, many ranks
//
//   FOLDER/rank-00000.safetensors   the chunks that rank 0 wrote
//          rank-00001.safetensors
//          manifest.json            written last: which chunk holds which rows, and their hashes
//
// Tensors are cut along their rows (dimension 0) only. Whoever loads asks for any rows, so a
// checkpoint of any world size and any sharding of rows loads into any other.

namespace narrowgauge::checkpoint {

// A complete checkpoint on the disk, to load from. Every error names the file and the tensor.
class Checkpoint {
 public:
  // Reads and checks the manifest. Throws std::runtime_error.
  static Checkpoint open(const std::filesystem::path& folder);

  const std::filesystem::path& folder() const { return reader_->folder(); }
  const CheckpointManifest& manifest() const { return reader_->manifest(); }

  // Fills `local` of each destination with its rows. All chunks needed are verified before the
  // first destination is written, so a damaged checkpoint leaves the model as it was. Tensors that
  // the checkpoint holds and nobody asks for are fine; the reverse, another dtype or another shape
  // throws std::runtime_error. Not collective: each rank loads what it needs. Not thread-safe.
  void load(std::span<const ShardChunk> destinations) const;

 private:
  explicit Checkpoint(CheckpointReader reader);

  std::shared_ptr<CheckpointReader> reader_;
};

}  // namespace narrowgauge::checkpoint

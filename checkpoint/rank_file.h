#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_manifest.h"

namespace narrowgauge::checkpoint {

// Rows that a rank writes, under their name in its file.
struct RankFileTensor {
  std::string name;
  at::Tensor rows;  // any device and strides
};

// What other threads see of a write, and how they end it.
struct WriteProgress {
  std::atomic<uint64_t> bytes_done = 0;
  std::atomic<bool> is_cancelled = false;
};

// Writes `tensors` as the safetensors file `path`, on the disk when it returns. The result says,
// for add_to_manifest, the file's size and the hashes. Local; throws std::runtime_error (disk full,
// or cancelled), and nothing stays under `path` then.
std::string write_rank_file(const std::filesystem::path& path,
                            const std::vector<RankFileTensor>& tensors, WriteProgress& progress);

// Fills in what the writers of a plan returned, `results` by rank; "" of a rank that wrote nothing.
void add_to_manifest(CheckpointManifest& manifest, const std::vector<std::string>& results);

}  // namespace narrowgauge::checkpoint

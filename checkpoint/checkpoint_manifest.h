#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace narrowgauge::checkpoint {

// Rows [row_begin, row_end) of a tensor: tensor `name` of the safetensors file `file`.
struct ManifestChunk {
  std::string file;
  std::string name;
  int64_t row_begin = 0;
  int64_t row_end = 0;
  uint64_t xxh3 = 0;  // XXH3_64bits of the chunk's bytes
};

// A file beside the manifest. Its data is hashed by chunks, so what is before the data is hashed
// too.
struct ManifestFile {
  uint64_t size_bytes = 0;
  uint64_t header_xxh3 = 0;  // of the safetensors header: length prefix, JSON and padding
};

struct ManifestTensor {
  std::string dtype;                  // as safetensors names it
  std::vector<int64_t> sizes;         // of the whole tensor; a scalar counts as one row
  std::vector<ManifestChunk> chunks;  // by rising row
};

// What a checkpoint holds; manifest.json beside its data.
struct CheckpointManifest {
  int64_t step = 0;
  int64_t world_size = 0;                     // that wrote it; any other may read it
  std::map<std::string, ManifestFile> files;  // by name
  std::map<std::string, ManifestTensor> tensors;
  std::string state_json = "{}";  // of the trainer: schedule, data position, configuration
};

inline constexpr const char* kManifestName = "manifest.json";

// Rows of a tensor of `sizes`, as chunks count them.
int64_t num_rows(const std::vector<int64_t>& sizes);

// Sorts the chunks of every tensor. Throws std::runtime_error naming `source`, the tensor and the
// rows where they do not cover it exactly once, or a file whose name is a path.
void check_manifest(CheckpointManifest& manifest, const std::string& source);

// Text of manifest.json, checksummed as a whole. Throws std::runtime_error when state_json is not
// an object.
std::string manifest_json(const CheckpointManifest& manifest);

// Throws std::runtime_error naming `source` for whatever is not a manifest, is of another version
// or differs in any byte from what manifest_json wrote.
CheckpointManifest parse_manifest(std::string_view text, const std::string& source);

// Of `num_rows` rows of a tensor.
uint64_t size_bytes(const ManifestTensor& tensor, int64_t num_rows);
// Of all tensors.
uint64_t size_bytes(const CheckpointManifest& manifest);

}  // namespace narrowgauge::checkpoint

#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "checkpoint/checkpoint_manifest.h"

namespace narrowgauge::checkpoint {

// The bytes of one checkpoint, checked against its manifest. Files are read, never mapped: a bad
// sector or a file cut short while it is read is an error that names file and tensor, not a signal.
// Every error is a std::runtime_error. Not thread-safe; no torch.
class CheckpointReader {
 public:
  // Of a verification: the bytes done so far.
  using Progress = std::function<void(uint64_t bytes_done)>;

  // Reads and checks the manifest alone.
  static CheckpointReader open(const std::filesystem::path& folder);

  ~CheckpointReader();
  CheckpointReader(CheckpointReader&&) noexcept;
  CheckpointReader& operator=(CheckpointReader&&) = delete;

  const std::filesystem::path& folder() const { return folder_; }
  const CheckpointManifest& manifest() const { return manifest_; }

  // Every file is there with the size, the header and the tensors that the manifest lists.
  void verify_structure();
  // Also every byte of the chunks in the files that are `part` of `num_parts`, dealt in turn.
  void verify(int part = 0, int num_parts = 1, const Progress& progress = {});
  // The chunk's bytes have the manifest's hash. Read once, however often it is asked for.
  void verify_chunk(const std::string& tensor_name, const ManifestTensor& tensor,
                    const ManifestChunk& chunk, const Progress& progress = {});

  // Reads rows [row_begin, row_end) of the whole tensor, which lie in `chunk`, to `out`.
  void read_rows(const std::string& tensor_name, const ManifestTensor& tensor,
                 const ManifestChunk& chunk, int64_t row_begin, int64_t row_end, void* out);

 private:
  struct File;

  CheckpointReader(std::filesystem::path folder, CheckpointManifest manifest);
  const File& file(const std::string& name);
  // Where the chunk's data begins in its file.
  uint64_t offset_of(const std::string& tensor_name, const ManifestTensor& tensor,
                     const ManifestChunk& chunk);
  // "; it holds tensor 'a' and 3 others": what is lost with a file.
  std::string contents_of(const std::string& file) const;

  std::filesystem::path folder_;
  CheckpointManifest manifest_;
  std::map<std::string, std::unique_ptr<File>> files_;
  std::set<std::pair<std::string, std::string>> verified_;  // file, name in it
};

}  // namespace narrowgauge::checkpoint

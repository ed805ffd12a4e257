#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace narrowgauge::data {

// A whole file, mapped read-only; pages come from disk as they are read. The file must not shrink
// while it is mapped.
class MappedFile {
 public:
  // Throws std::runtime_error with the path when the file cannot be opened. An empty file maps to
  // no bytes.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return bytes_; }
  // Bytes [begin, end) are done with: the pages that end there or before leave the process's
  // memory, and come from the file again where they are read once more.
  void release(size_t begin, size_t end) const;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::span<const std::byte> bytes_;
};

}  // namespace narrowgauge::data

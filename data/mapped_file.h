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
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::span<const std::byte> bytes_;
};

}  // namespace narrowgauge::data

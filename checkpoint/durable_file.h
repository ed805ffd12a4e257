#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace narrowgauge::checkpoint {

// A file that appears under its name only when complete and on the disk.
//
// Bytes go to PATH.tmp; commit() makes them durable and renames. A crash at any moment leaves the
// old file or the new one, never a mixture. Every failure (folder missing, disk full, file-size
// limit) throws std::runtime_error naming the file, and the temporary is removed.
// Not thread-safe, but for write_past_cache.
class DurableFile {
 public:
  explicit DurableFile(std::filesystem::path path);
  // Removes the temporary unless committed.
  ~DurableFile();
  DurableFile(const DurableFile&) = delete;
  DurableFile& operator=(const DurableFile&) = delete;

  // Takes the room for `size` bytes on the disk, so that a full one is known before anything is
  // written. Does nothing where the file system cannot tell.
  void reserve(uint64_t size);

  // Writes all `size` bytes at `offset`; regions may come in any order. The disk is set to work at
  // once, so that commit() finds little left to wait for.
  void write_at(uint64_t offset, const void* data, size_t size);

  // The same past the page cache, which saves a copy of every byte and the kernel's own pace of
  // writing; through it where the file system refuses. Several threads may write regions that do
  // not overlap. REQUIRES: `offset`, `data` and `size` are multiples of kPageBytes.
  void write_past_cache(uint64_t offset, const void* data, size_t size);
  static constexpr size_t kPageBytes = 4096;

  // fsync, rename, fsync of the folder. Nothing may be written afterwards.
  void commit();

 private:
  // Writes as much as a call of pwrite() does, at least one byte; false where `descriptor` must not
  // be written in this way.
  bool write_some(int descriptor, uint64_t& offset, const char*& bytes, size_t& size);
  [[noreturn]] void fail(const std::string& what) const;

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
  int direct_descriptor_ = -1;  // of the same file, O_DIRECT; -1 where there is none
  bool committed_ = false;
};

// A whole small file, through DurableFile.
void write_durable_file(const std::filesystem::path& path, std::string_view contents);

// Throws std::runtime_error naming the file and the reason; also when it exceeds `max_bytes`, so
// that a file that is not what it claims to be is not read into memory.
std::string read_file(const std::filesystem::path& path, uint64_t max_bytes = uint64_t{1} << 30);

// Makes a folder and the parents that are missing, each entry durable.
void create_durable_directories(const std::filesystem::path& directory);

// Makes the entries of a folder durable.
void sync_directory(const std::filesystem::path& directory);

// Makes the folder `from` appear as `to` and its entry durable. A folder already there is swapped
// out in one step, so that `to` exists at every moment, and then deleted. Where the file system
// cannot swap, `to` is TO.old for an instant; who finds no `to` after a crash renames that back.
void replace_directory(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace narrowgauge::checkpoint

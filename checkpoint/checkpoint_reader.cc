#include "checkpoint/checkpoint_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "checkpoint/durable_file.h"
#include "checkpoint/safetensors_header.h"
#include "checkpoint/xxh3.h"

namespace narrowgauge::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kPieceBytes = uint64_t{4} << 20;

[[noreturn]] void fail(const std::string& where, const std::string& what) {
  throw std::runtime_error(where + ": " + what + "; the checkpoint is damaged");
}

}  // namespace

struct CheckpointReader::File {
  explicit File(const fs::path& file) : path(file) {
    descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
      throw std::runtime_error(path.string() + ": cannot open: " + std::strerror(errno));
    }
    struct stat status = {};
    if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
      ::close(descriptor);
      throw std::runtime_error(path.string() + ": expected a file, found something else");
    }
    size = static_cast<uint64_t>(status.st_size);
    ::posix_fadvise(descriptor, 0, 0, POSIX_FADV_SEQUENTIAL);
  }
  ~File() { ::close(descriptor); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  void read(uint64_t offset, void* out, uint64_t num_bytes, const std::string& where) const {
    auto* bytes = static_cast<char*>(out);
    while (num_bytes > 0) {
      const ssize_t count = ::pread(descriptor, bytes, std::min(num_bytes, uint64_t{1} << 30),
                                    static_cast<off_t>(offset));
      if (count < 0 && errno == EINTR) {
        continue;
      }
      if (count <= 0) {
        fail(where, "cannot read at byte " + std::to_string(offset) + ": " +
                        (count == 0 ? "the file ends there" : std::strerror(errno)));
      }
      bytes += count;
      offset += static_cast<uint64_t>(count);
      num_bytes -= static_cast<uint64_t>(count);
    }
  }

  fs::path path;
  int descriptor = -1;
  uint64_t size = 0;
  SafetensorsHeader header;
};

CheckpointReader::CheckpointReader(fs::path folder, CheckpointManifest manifest)
    : folder_(std::move(folder)), manifest_(std::move(manifest)) {}

CheckpointReader::~CheckpointReader() = default;
CheckpointReader::CheckpointReader(CheckpointReader&&) noexcept = default;

CheckpointReader CheckpointReader::open(const fs::path& folder) {
  const fs::path path = folder / kManifestName;
  return CheckpointReader(folder, parse_manifest(read_file(path), path.string()));
}

std::string CheckpointReader::contents_of(const std::string& file) const {
  std::string first;
  size_t count = 0;
  for (const auto& [name, tensor] : manifest_.tensors) {
    const bool is_in = std::any_of(tensor.chunks.begin(), tensor.chunks.end(),
                                   [&](const ManifestChunk& chunk) { return chunk.file == file; });
    first = is_in && count == 0 ? name : first;
    count += is_in;
  }
  return count == 0 ? ""
                    : "; it holds tensor '" + first + "'" +
                          (count == 1 ? "" : " and " + std::to_string(count - 1) + " more");
}

const CheckpointReader::File& CheckpointReader::file(const std::string& name) {
  auto& cached = files_[name];
  if (cached != nullptr) {
    return *cached;
  }
  const std::string where = (folder_ / name).string();
  const auto planned = manifest_.files.find(name);
  if (planned == manifest_.files.end()) {
    fail(where, "the manifest does not list this file" + contents_of(name));
  }
  auto file = std::make_unique<File>(folder_ / name);
  if (file->size != planned->second.size_bytes) {
    fail(where, "expected " + std::to_string(planned->second.size_bytes) + " bytes, got " +
                    std::to_string(file->size) + contents_of(name));
  }
  uint64_t length = 0;
  std::string header(std::min<uint64_t>(file->size, sizeof length), '\0');
  file->read(0, header.data(), header.size(), where);
  std::memcpy(&length, header.data(), header.size());
  if (length > file->size - header.size() || length > kMaxSafetensorsHeaderBytes) {
    fail(where, "its header does not end in the file" + contents_of(name));
  }
  header.resize(header.size() + length);
  file->read(0, header.data(), header.size(), where);
  if (const uint64_t actual = xxh3(header.data(), header.size());
      actual != planned->second.header_xxh3) {
    fail(where, "expected xxh3 " + xxh3_text(planned->second.header_xxh3) + " of its header, got " +
                    xxh3_text(actual) + contents_of(name));
  }
  file->header = parse_safetensors_header(header, file->size, where);
  cached = std::move(file);
  return *cached;
}

uint64_t CheckpointReader::offset_of(const std::string& tensor_name, const ManifestTensor& tensor,
                                     const ManifestChunk& chunk) {
  const File& source = file(chunk.file);
  std::vector<int64_t> expected = tensor.sizes;
  if (!expected.empty()) {
    expected[0] = chunk.row_end - chunk.row_begin;
  }
  const auto entry = source.header.tensors.find(chunk.name);
  if (entry == source.header.tensors.end() || entry->second.sizes != expected ||
      entry->second.dtype != tensor.dtype) {
    fail(source.path.string() + ": tensor '" + tensor_name + "'",
         "is not in it with the dtype and shape of the manifest");
  }
  return source.header.data_offset + entry->second.begin;
}

void CheckpointReader::verify_structure() {
  for (const auto& [name, planned] : manifest_.files) {
    file(name);
  }
  for (const auto& [name, tensor] : manifest_.tensors) {
    for (const ManifestChunk& chunk : tensor.chunks) {
      offset_of(name, tensor, chunk);
    }
  }
}

void CheckpointReader::verify(int part, int num_parts, const Progress& progress) {
  verify_structure();
  std::set<std::string> mine;
  int index = 0;
  for (const auto& [name, planned] : manifest_.files) {
    if (index++ % num_parts == part) {
      mine.insert(name);
    }
  }
  uint64_t done_before = 0;
  for (const auto& [name, tensor] : manifest_.tensors) {
    for (const ManifestChunk& chunk : tensor.chunks) {
      if (mine.contains(chunk.file)) {
        verify_chunk(name, tensor, chunk, [&](uint64_t bytes) {
          if (progress) {
            progress(done_before + bytes);
          }
        });
        done_before += size_bytes(tensor, chunk.row_end - chunk.row_begin);
      }
    }
  }
}

void CheckpointReader::verify_chunk(const std::string& tensor_name, const ManifestTensor& tensor,
                                    const ManifestChunk& chunk, const Progress& progress) {
  if (verified_.contains({chunk.file, chunk.name})) {
    return;
  }
  const uint64_t begin = offset_of(tensor_name, tensor, chunk);
  const uint64_t size = size_bytes(tensor, chunk.row_end - chunk.row_begin);
  const File& source = file(chunk.file);
  const std::string where = source.path.string() + ": tensor '" + tensor_name + "'";
  Xxh3 hash;
  std::vector<char> piece(std::min(size, kPieceBytes));
  for (uint64_t done = 0; done < size; done += piece.size()) {
    const uint64_t count = std::min<uint64_t>(piece.size(), size - done);
    source.read(begin + done, piece.data(), count, where);
    hash.update(piece.data(), count);
    if (progress) {
      progress(done + count);
    }
  }
  if (const uint64_t actual = hash.digest(); actual != chunk.xxh3) {
    fail(where, "expected xxh3 " + xxh3_text(chunk.xxh3) + ", got " + xxh3_text(actual));
  }
  verified_.emplace(chunk.file, chunk.name);
}

void CheckpointReader::read_rows(const std::string& tensor_name, const ManifestTensor& tensor,
                                 const ManifestChunk& chunk, int64_t row_begin, int64_t row_end,
                                 void* out) {
  const uint64_t begin =
      offset_of(tensor_name, tensor, chunk) + size_bytes(tensor, row_begin - chunk.row_begin);
  const File& source = file(chunk.file);
  source.read(begin, out, size_bytes(tensor, row_end - row_begin),
              source.path.string() + ": tensor '" + tensor_name + "'");
}

}  // namespace narrowgauge::checkpoint

#include "checkpoint/durable_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <utility>

namespace narrowgauge::checkpoint {
namespace {

namespace fs = std::filesystem;

std::runtime_error system_error(const std::string& what, int code) {
  std::string remedy;
  if (code == ENOSPC || code == EDQUOT || code == EFBIG) {
    remedy = "; free space or raise the limit, nothing older was touched";
  } else if (code == EROFS || code == EACCES) {
    remedy = "; choose a folder that this user may write";
  }
  return std::runtime_error(what + ": " + std::strerror(code) + remedy);
}

fs::path parent_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

}  // namespace

DurableFile::DurableFile(fs::path path) : path_(std::move(path)), temporary_(path_) {
  temporary_ += ".tmp";
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor_ < 0) {
    fail("cannot create");
  }
  // A second one, since the tail of a file goes through the cache while its middle goes past it.
  direct_descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CLOEXEC | O_DIRECT);
}

DurableFile::~DurableFile() {
  for (const int descriptor : {descriptor_, direct_descriptor_}) {
    if (descriptor >= 0) {
      ::close(descriptor);
    }
  }
  if (!committed_) {
    ::unlink(temporary_.c_str());
  }
}

void DurableFile::fail(const std::string& what) const {
  throw system_error(what + " " + temporary_.string(), errno);
}

void DurableFile::reserve(uint64_t size) {
  if (size > 0 && ::fallocate(descriptor_, 0, 0, static_cast<off_t>(size)) != 0 &&
      errno != EOPNOTSUPP && errno != EINTR) {
    fail("cannot reserve " + std::to_string(size) + " bytes for");
  }
}

bool DurableFile::write_some(int descriptor, uint64_t& offset, const char*& bytes, size_t& size) {
  ssize_t written = 0;
  do {  // Linux moves at most 2 GiB a call.
    written =
        ::pwrite(descriptor, bytes, std::min(size, size_t{1} << 30), static_cast<off_t>(offset));
  } while (written < 0 && errno == EINTR);
  if (written < 0 && errno == EINVAL && descriptor == direct_descriptor_) {
    return false;
  }
  if (written <= 0) {
    errno = written == 0 ? ENOSPC : errno;
    fail("cannot write " + std::to_string(size) + " bytes at offset " + std::to_string(offset) +
         " of");
  }
  bytes += written;
  offset += static_cast<uint64_t>(written);
  size -= static_cast<size_t>(written);
  return true;
}

void DurableFile::write_at(uint64_t offset, const void* data, size_t size) {
  const char* bytes = static_cast<const char*>(data);
  while (size > 0) {
    const auto start = static_cast<off_t>(offset);
    write_some(descriptor_, offset, bytes, size);
    // Only a hint: not every file system knows it, and fsync reports what goes wrong.
    ::sync_file_range(descriptor_, start, static_cast<off_t>(offset) - start,
                      SYNC_FILE_RANGE_WRITE);
  }
}

void DurableFile::write_past_cache(uint64_t offset, const void* data, size_t size) {
  const char* bytes = static_cast<const char*>(data);
  while (size > 0) {
    // EINVAL: larger blocks than a page, no such writes at all, or a write cut short within a page.
    if (direct_descriptor_ < 0 || !write_some(direct_descriptor_, offset, bytes, size)) {
      write_at(offset, bytes, size);
      return;
    }
  }
}

void DurableFile::commit() {
  if (::fsync(descriptor_) != 0) {
    fail("cannot fsync");
  }
  if (direct_descriptor_ >= 0 && ::close(std::exchange(direct_descriptor_, -1)) != 0) {
    fail("cannot close");
  }
  // Network file systems report a full disk here.
  if (::close(std::exchange(descriptor_, -1)) != 0) {
    fail("cannot close");
  }
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
    fail("cannot rename into place");
  }
  committed_ = true;
  sync_directory(parent_of(path_));
}

void write_durable_file(const fs::path& path, std::string_view contents) {
  DurableFile file(path);
  file.write_at(0, contents.data(), contents.size());
  file.commit();
}

std::string read_file(const fs::path& path, uint64_t max_bytes) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) {
    throw std::runtime_error(path.string() + ": expected a file, found " +
                             (fs::exists(path, error) ? "something else" : "nothing"));
  }
  const uint64_t size = fs::file_size(path);
  if (size > max_bytes) {
    throw std::runtime_error(path.string() + ": expected at most " + std::to_string(max_bytes) +
                             " bytes, got " + std::to_string(size));
  }
  std::string contents(size, '\0');
  std::ifstream stream(path, std::ios::binary);
  stream.read(contents.data(), static_cast<std::streamsize>(size));
  if (!stream) {
    throw std::runtime_error(path.string() + ": expected " + std::to_string(size) +
                             " bytes, could read " + std::to_string(stream.gcount()) +
                             "; check its permissions and the disk");
  }
  return contents;
}

void create_durable_directories(const fs::path& directory) {
  if (fs::exists(directory)) {
    return;
  }
  const fs::path parent = parent_of(directory);
  create_durable_directories(parent);
  if (::mkdir(directory.c_str(), 0755) != 0 && errno != EEXIST) {
    throw system_error("cannot create folder " + directory.string(), errno);
  }
  sync_directory(parent);
}

void sync_directory(const fs::path& directory) {
  const int descriptor = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  // Some network file systems cannot fsync a folder and say EINVAL: their rename is durable itself.
  const bool ok = descriptor >= 0 && (::fsync(descriptor) == 0 || errno == EINVAL);
  const int code = errno;
  if (descriptor >= 0) {
    ::close(descriptor);
  }
  if (!ok) {
    throw system_error("cannot fsync folder " + directory.string(), code);
  }
}

void replace_directory(const fs::path& from, const fs::path& to) {
  sync_directory(from);
  bool swapped = false;
  if (fs::exists(to)) {
    swapped = ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0;
    if (!swapped && errno != EINVAL && errno != ENOSYS) {
      throw system_error("cannot exchange " + from.string() + " and " + to.string(), errno);
    }
    if (!swapped) {  // a file system without the exchange: `to` is missing for an instant
      const fs::path old = fs::path(to).concat(".old");
      fs::remove_all(old);
      fs::rename(to, old);
      fs::rename(from, to);
      sync_directory(parent_of(to));
      fs::remove_all(old);
      return;
    }
  } else if (::rename(from.c_str(), to.c_str()) != 0) {
    throw system_error("cannot rename " + from.string() + " to " + to.string(), errno);
  }
  sync_directory(parent_of(to));
  if (swapped) {
    fs::remove_all(from);
  }
}

}  // namespace narrowgauge::checkpoint

#include "data/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace narrowgauge::data {

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    throw std::runtime_error("expected a readable file, got '" + path +
                             "': " + std::strerror(errno));
  }
  struct stat status {};
  void* address = nullptr;
  bool is_mapped = ::fstat(descriptor, &status) == 0;
  if (is_mapped && status.st_size > 0) {
    address =
        ::mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ, MAP_SHARED, descriptor, 0);
    is_mapped = address != MAP_FAILED;
  }
  const int error = errno;
  ::close(descriptor);  // the mapping stays
  if (!is_mapped) {
    throw std::runtime_error("cannot map '" + path + "': " + std::strerror(error));
  }
  bytes_ = {static_cast<const std::byte*>(address), static_cast<size_t>(status.st_size)};
}

void MappedFile::release(size_t begin, size_t end) const {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t first = begin / page * page;
  const size_t last = std::min(end, bytes_.size()) / page * page;
  if (first >= last) return;
  // A hint: nothing is lost when it is not taken.
  ::madvise(const_cast<std::byte*>(bytes_.data()) + first, last - first, MADV_DONTNEED);
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

}  // namespace narrowgauge::data

#include "checkpoint/safetensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace narrowgauge::checkpoint {
namespace {

constexpr std::array<std::pair<const char*, at::ScalarType>, 13> kDtypes = {{
    {"F64", at::kDouble},
    {"F32", at::kFloat},
    {"F16", at::kHalf},
    {"BF16", at::kBFloat16},
    {"F8_E4M3", at::kFloat8_e4m3fn},
    {"F8_E5M2", at::kFloat8_e5m2},
    {"F8_E8M0", at::kFloat8_e8m0fnu},
    {"I64", at::kLong},
    {"I32", at::kInt},
    {"I16", at::kShort},
    {"I8", at::kChar},
    {"U8", at::kByte},
    {"BOOL", at::kBool},
}};

}  // namespace

std::string safetensors_dtype_name(at::ScalarType dtype) {
  for (const auto& [name, scalar_type] : kDtypes) {
    if (scalar_type == dtype) {
      return name;
    }
  }
  TORCH_CHECK(false, "expected a dtype that safetensors has, got ", dtype, "; convert it first");
}

at::ScalarType safetensors_scalar_type(const std::string& name) {
  for (const auto& [known, scalar_type] : kDtypes) {
    if (name == known) {
      return scalar_type;
    }
  }
  TORCH_CHECK(false, "expected a safetensors dtype, got '", name, "'");
}

struct SafetensorsFile::Mapping {
  explicit Mapping(const std::filesystem::path& file) : path(file) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
      throw std::runtime_error(path.string() + ": cannot open: " + std::strerror(errno));
    }
    struct stat status = {};
    const bool is_file = ::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
    size = is_file ? static_cast<uint64_t>(status.st_size) : 0;
    if (size > 0) {
      // Private and writable: an in-place operation on a loaded tensor copies the page instead of
      // crashing or reaching the file.
      data =
          ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, descriptor, 0);
    }
    const int code = errno;
    ::close(descriptor);
    if (!is_file) {
      throw std::runtime_error(path.string() + ": expected a file, found something else");
    }
    if (data == MAP_FAILED) {
      throw std::runtime_error(path.string() + ": cannot map " + std::to_string(size) +
                               " bytes: " + std::strerror(code));
    }
  }
  ~Mapping() {
    if (data != nullptr && data != MAP_FAILED) {
      ::munmap(data, size);
    }
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::filesystem::path path;
  uint64_t size = 0;
  void* data = nullptr;
};

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  SafetensorsFile file;
  file.mapping_ = std::make_shared<Mapping>(path);
  const std::string_view bytes(static_cast<const char*>(file.mapping_->data), file.mapping_->size);
  file.header_ = std::make_shared<SafetensorsHeader>(
      parse_safetensors_header(bytes, bytes.size(), path.string()));
  return file;
}

const std::filesystem::path& SafetensorsFile::path() const { return mapping_->path; }

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  names.reserve(header_->tensors.size());
  for (const auto& [name, entry] : header_->tensors) {
    names.push_back(name);
  }
  return names;
}

bool SafetensorsFile::contains(const std::string& name) const {
  return header_->tensors.count(name) > 0;
}

const std::map<std::string, std::string>& SafetensorsFile::metadata() const {
  return header_->metadata;
}

const SafetensorsEntry& SafetensorsFile::entry(const std::string& name) const {
  const auto found = header_->tensors.find(name);
  TORCH_CHECK(found != header_->tensors.end(), path().string(), ": expected a tensor '", name,
              "', the file has ", header_->tensors.size(), " others");
  return found->second;
}

at::ScalarType SafetensorsFile::dtype(const std::string& name) const {
  return safetensors_scalar_type(entry(name).dtype);
}

const std::vector<int64_t>& SafetensorsFile::sizes(const std::string& name) const {
  return entry(name).sizes;
}

at::Tensor SafetensorsFile::view(const SafetensorsEntry& entry, uint64_t offset,
                                 const std::vector<int64_t>& sizes) const {
  char* data = static_cast<char*>(mapping_->data) + header_->data_offset + entry.begin + offset;
  const at::ScalarType dtype = safetensors_scalar_type(entry.dtype);
  const auto is_aligned = reinterpret_cast<uintptr_t>(data) % c10::elementSize(dtype) == 0;
  const auto options = at::TensorOptions().dtype(dtype);
  if (is_aligned) {
    return at::from_blob(
        data, sizes, [mapping = mapping_](void*) {}, options);
  }
  at::Tensor copy = at::empty(sizes, options);
  std::memcpy(copy.mutable_data_ptr(), data, copy.nbytes());
  return copy;
}

at::Tensor SafetensorsFile::tensor(const std::string& name) const {
  const SafetensorsEntry& found = entry(name);
  return view(found, 0, found.sizes);
}

at::Tensor SafetensorsFile::rows(const std::string& name, int64_t begin, int64_t end) const {
  const SafetensorsEntry& found = entry(name);
  TORCH_CHECK(!found.sizes.empty(), path().string(), ": tensor '", name,
              "' is a scalar and has no rows; read it whole");
  const int64_t num_rows = found.sizes[0];
  TORCH_CHECK(0 <= begin && begin <= end && end <= num_rows, path().string(), ": tensor '", name,
              "': expected rows within [0, ", num_rows, "], got [", begin, ", ", end, ")");
  std::vector<int64_t> sizes = found.sizes;
  sizes[0] = end - begin;
  const uint64_t row_bytes = num_rows == 0 ? 0 : (found.end - found.begin) / num_rows;
  return view(found, row_bytes * begin, sizes);
}

namespace {

// Entries in file order, with offsets.
std::vector<std::pair<std::string, SafetensorsEntry>> lay_out(
    const std::vector<SafetensorsSpec>& specs, const std::string& source) {
  std::vector<std::pair<std::string, SafetensorsEntry>> entries;
  for (const SafetensorsSpec& spec : specs) {
    TORCH_CHECK(spec.name != "__metadata__", source, ": __metadata__ cannot name a tensor");
    entries.push_back({spec.name, {safetensors_dtype_name(spec.dtype), spec.sizes, 0, 0}});
  }
  lay_out_tensors(entries);
  return entries;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path,
                                     const std::vector<SafetensorsSpec>& specs,
                                     const std::map<std::string, std::string>& metadata)
    : path_(path), file_(path) {
  const auto entries = lay_out(specs, path.string());
  for (const auto& [name, entry] : entries) {
    TORCH_CHECK(missing_.emplace(name, entry).second, path.string(), ": tensor '", name,
                "' is announced twice");
  }
  const std::string header = safetensors_header_bytes(entries, metadata);
  file_.write_at(0, header.data(), header.size());
  data_offset_ = header.size();
}

void SafetensorsWriter::write(const std::string& name, const at::Tensor& tensor) {
  const auto found = missing_.find(name);
  TORCH_CHECK(found != missing_.end(), path_.string(), ": tensor '", name,
              "' was not announced or is written twice");
  const SafetensorsEntry& entry = found->second;
  TORCH_CHECK(safetensors_dtype_name(tensor.scalar_type()) == entry.dtype &&
                  tensor.sizes() == at::IntArrayRef(entry.sizes),
              path_.string(), ": tensor '", name, "': expected ", entry.dtype, " ",
              at::IntArrayRef(entry.sizes), ", got ", tensor.scalar_type(), " ", tensor.sizes());
  const at::Tensor bytes = tensor.detach().to(at::kCPU).contiguous();
  file_.write_at(data_offset_ + entry.begin, bytes.const_data_ptr(), bytes.nbytes());
  missing_.erase(found);
}

void SafetensorsWriter::commit() {
  TORCH_CHECK(missing_.empty(), path_.string(), ": ", missing_.size(),
              " announced tensors were not written, '", missing_.begin()->first, "' first");
  file_.commit();
}

void write_safetensors(const std::filesystem::path& path,
                       const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<SafetensorsSpec> specs;
  for (const auto& [name, tensor] : tensors) {
    specs.push_back({name, tensor.scalar_type(), tensor.sizes().vec()});
  }
  SafetensorsWriter writer(path, specs, metadata);
  for (const auto& [name, tensor] : tensors) {
    writer.write(name, tensor);
  }
  writer.commit();
}

}  // namespace narrowgauge::checkpoint

#include "report/event_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "report/crc32c.h"

namespace narrowgauge::report {
namespace {

static_assert(std::endian::native == std::endian::little);

double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

template <typename T>
std::string raw_bytes(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

// Protocol buffers, wire types 0 (varint), 1 (8 bytes), 2 (length and bytes), 5 (4 bytes).
std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) {
    bytes += static_cast<char>(value | 0x80);
  }
  return bytes + static_cast<char>(value);
}

std::string key(int field, int wire_type) {
  return varint(static_cast<uint64_t>(field) << 3 | static_cast<uint64_t>(wire_type));
}

std::string integer_field(int field, int64_t value) {
  return key(field, 0) + varint(static_cast<uint64_t>(value));
}
std::string double_field(int field, double value) { return key(field, 1) + raw_bytes(value); }
std::string float_field(int field, float value) { return key(field, 5) + raw_bytes(value); }
std::string bytes_field(int field, const std::string& bytes) {
  return key(field, 2) + varint(bytes.size()) + bytes;
}

// Event: wall_time 1, step 2, file_version 3, summary 5, session_log 7.
std::string event(int64_t step, const std::string& what) {
  return double_field(1, wall_seconds()) + integer_field(2, step) + what;
}

// Summary: repeated value 1; Value: tag 1, simple_value 2, tensor 8, metadata 9.
std::string scalar_value(const std::string& tag, double value) {
  return bytes_field(1, bytes_field(1, tag) + float_field(2, static_cast<float>(value)));
}

// TensorProto: dtype 1 (7: string), tensor_shape 2 (dim 2: size 1), string_val 8.
// SummaryMetadata: plugin_data 1 (plugin_name 1), data_class 4 (1: tensor).
std::string text_value(const std::string& tag, const std::string& text) {
  const std::string shape = bytes_field(2, integer_field(1, 1));
  const std::string tensor = integer_field(1, 7) + bytes_field(2, shape) + bytes_field(8, text);
  const std::string metadata = bytes_field(1, bytes_field(1, "text")) + integer_field(4, 1);
  return bytes_field(1, bytes_field(1, tag) + bytes_field(8, tensor) + bytes_field(9, metadata));
}

// Names sort in the order in which files are made, which is the order of reading; a second that has
// one already gets another number.
std::filesystem::path unused_path(const std::filesystem::path& folder) {
  char host[64] = "host";
  gethostname(host, sizeof host - 1);
  const auto seconds = static_cast<int64_t>(wall_seconds());
  for (int number = 0;; ++number) {
    char name[160];
    std::snprintf(name, sizeof name, "events.out.tfevents.%010ld.%03d.%s", seconds, number, host);
    if (!std::filesystem::exists(folder / name)) {
      return folder / name;
    }
  }
}

}  // namespace

EventFile::EventFile(const std::filesystem::path& folder, int64_t last_step) {
  std::error_code ignored;  // open tells
  std::filesystem::create_directories(folder, ignored);
  path_ = unused_path(folder);
  descriptor_ = ::open(path_.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor_ < 0) {
    throw std::runtime_error("cannot write " + path_.string() + ": " + std::strerror(errno));
  }
  append(event(0, bytes_field(3, "brain.Event:2")));
  constexpr int64_t kStart = 1;
  append(event(last_step + 1, bytes_field(7, integer_field(1, kStart))));
}

EventFile::~EventFile() { ::close(descriptor_); }

void EventFile::add_scalars(int64_t step, const Scalars& scalars) {
  std::string summary;
  for (const auto& [tag, value] : scalars) {
    summary += scalar_value(tag, value);
  }
  append(event(step, bytes_field(5, summary)));
}

void EventFile::add_text(int64_t step, const std::string& tag, const std::string& text) {
  append(event(step, bytes_field(5, text_value(tag, text))));
}

void EventFile::append(const std::string& event) {
  const std::string length = raw_bytes(static_cast<uint64_t>(event.size()));
  const std::string record =
      length + raw_bytes(masked_crc32c(length)) + event + raw_bytes(masked_crc32c(event));
  struct stat before {};
  const bool has_size = ::fstat(descriptor_, &before) == 0;
  const ssize_t written = ::write(descriptor_, record.data(), record.size());
  if (written == static_cast<ssize_t>(record.size())) {
    return;
  }
  const int reason = written < 0 ? errno : ENOSPC;
  // A torn record would hide all that follow it.
  const bool is_torn = written > 0 && (!has_size || ::ftruncate(descriptor_, before.st_size) != 0);
  if (!reported_ || is_torn) {
    std::fprintf(stderr, "cannot write %s: %s; the run goes on, events are lost\n", path_.c_str(),
                 std::strerror(reason));
    reported_ = true;
  }
}

}  // namespace narrowgauge::report

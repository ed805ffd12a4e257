#include "trainer/json_lines.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "checkpoint/durable_file.h"

namespace narrowgauge::trainer {
namespace {

void drop_lines_behind(const std::string& path, int64_t last_step) {
  std::ifstream file(path);
  std::string kept;
  bool drops_some = false;
  for (std::string line; std::getline(file, line);) {
    const auto object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    // A last line without its newline is torn even if what is there parses.
    if (!file.eof() && object.is_object() && object.value("step", int64_t{0}) <= last_step) {
      kept += line + '\n';
    } else {
      drops_some = true;
    }
  }
  if (drops_some) {
    checkpoint::write_durable_file(path, kept);
  }
}

}  // namespace

JsonLines::JsonLines(const std::string& path, int64_t last_step) : path_(path) {
  try {
    drop_lines_behind(path, last_step);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s keeps lines of steps that come again: %s\n", path.c_str(),
                 error.what());
  }
  descriptor_ = ::open(path.c_str(), O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor_ < 0) {
    throw std::runtime_error("cannot write " + path + ": " + std::strerror(errno));
  }
}

JsonLines::~JsonLines() { ::close(descriptor_); }

void JsonLines::append(const std::string& line) {
  const std::string text = line + '\n';
  struct stat before {};
  const bool has_size = ::fstat(descriptor_, &before) == 0;
  const ssize_t written = ::write(descriptor_, text.data(), text.size());
  if (written == static_cast<ssize_t>(text.size())) {
    num_lost_ = 0;
    return;
  }
  const int reason = errno;
  if (written > 0 && has_size && ::ftruncate(descriptor_, before.st_size) != 0) {
    std::fprintf(stderr, "%s has a torn line\n", path_.c_str());
  }
  if (num_lost_++ == 0) {
    std::fprintf(stderr, "cannot write %s: %s; the run goes on, lines are lost\n", path_.c_str(),
                 std::strerror(written < 0 ? reason : ENOSPC));
  }
}

}  // namespace narrowgauge::trainer

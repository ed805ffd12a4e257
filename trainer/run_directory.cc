#include "trainer/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "checkpoint/durable_file.h"
#include "trainer/config_changes.h"
#include "trainer/config_reader.h"
#include "trainer/config_writer.h"

namespace narrowgauge::trainer {
namespace {

int lock_file(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644);
  if (descriptor < 0) {
    throw std::runtime_error("cannot write " + path.string() + ": " + std::strerror(errno));
  }
  if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) {
    return descriptor;
  }
  if (errno == EWOULDBLOCK) {
    ::close(descriptor);
    throw std::runtime_error("another process trains in " + path.parent_path().string() +
                             "; wait for it or choose another job.run_dir");
  }
  // Some network file systems know no locks.
  std::fprintf(stderr, "cannot lock %s (%s); take care that one process alone trains there\n",
               path.c_str(), std::strerror(errno));
  return descriptor;
}

}  // namespace

RunDirectory RunDirectory::open(const TrainConfig& config) {
  RunDirectory run = attach(config);
  std::error_code error;
  std::filesystem::create_directories(run.path_, error);
  if (error) {
    throw std::runtime_error("cannot create job.run_dir " + run.path_.string() + ": " +
                             error.message());
  }
  run.lock_descriptor_ = lock_file(run.path_ / "lock");
  if (std::filesystem::exists(run.config_file())) {
    const auto before = config_texts(read_config(run.config_file(), {}));
    check_changes(config_changes(before, config), config, "job.run_dir " + run.path_.string());
  }
  return run;
}

RunDirectory RunDirectory::attach(const TrainConfig& config) {
  return RunDirectory(config.job.run_dir);
}

RunDirectory::~RunDirectory() {
  if (lock_descriptor_ >= 0) {
    ::close(lock_descriptor_);
  }
}

RunDirectory::RunDirectory(RunDirectory&& other) noexcept
    : path_(std::move(other.path_)), lock_descriptor_(std::exchange(other.lock_descriptor_, -1)) {}

void RunDirectory::write_config(const TrainConfig& config) const {
  checkpoint::write_durable_file(config_file(), to_yaml(config));
  if (!config.model.initial_load_path.empty() && !std::filesystem::exists(base_config_file())) {
    checkpoint::write_durable_file(
        base_config_file(),
        checkpoint::read_file(std::filesystem::path(config.model.initial_load_path) /
                              "config.json"));
  }
}

}  // namespace narrowgauge::trainer

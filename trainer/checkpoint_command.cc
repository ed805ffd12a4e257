#include "trainer/checkpoint_command.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/checkpoint_diff.h"
#include "checkpoint/checkpoint_reader.h"
#include "checkpoint/checkpoint_store.h"
#include "checkpoint/whole_tensors.h"
#include "trainer/stage_progress.h"

namespace narrowgauge::trainer {
namespace {

namespace fs = std::filesystem;
using checkpoint::CheckpointReader;
using nlohmann::ordered_json;

constexpr uint64_t kLargeBytes = uint64_t{1} << 28;  // a fraction of a second; more shows progress

bool is_checkpoint(const fs::path& path) { return fs::exists(path / checkpoint::kManifestName); }

// The checkpoints of a run directory, or the folder itself.
fs::path store_of(const std::string& path) {
  const fs::path inside = fs::path(path) / "checkpoints";
  if (fs::is_directory(inside)) {
    return inside;
  }
  const bool has_some =
      !checkpoint::list_checkpoints(path).empty() || !checkpoint::list_leftovers(path).empty();
  if (!has_some) {
    throw UsageError(path + " is neither a run directory nor a folder of checkpoints");
  }
  return path;
}

// A checkpoint, or the one that a run would go on from, damaged or not.
fs::path checkpoint_of(const std::string& path) {
  if (is_checkpoint(path)) {
    return path;
  }
  const auto all = checkpoint::list_checkpoints(store_of(path));
  if (all.empty()) {
    throw std::runtime_error(path + " has no complete checkpoint");
  }
  return all.front();
}

// Shows how much of `total` is done where that takes a while.
class ByteProgress {
 public:
  ByteProgress(std::string stage, uint64_t total) : stage_(std::move(stage)), total_(total) {}
  void operator()(uint64_t done) {
    if (total_ > kLargeBytes) {
      progress_.update(stage_, static_cast<double>(done) / static_cast<double>(total_));
    }
  }

 private:
  std::string stage_;
  uint64_t total_;
  StageProgress progress_;
};

// What is wrong with any byte of a checkpoint, or "".
std::string damage_of(const fs::path& folder) {
  try {
    CheckpointReader reader = CheckpointReader::open(folder);
    ByteProgress progress("checking " + folder.filename().string(),
                          checkpoint::size_bytes(reader.manifest()));
    reader.verify(0, 1, [&](uint64_t done) { progress(done); });
    return "";
  } catch (const std::exception& error) {
    return error.what();
  }
}

ordered_json describe(const fs::path& folder, bool is_latest) {
  ordered_json line = {{"checkpoint", folder.filename().string()}, {"latest", is_latest}};
  try {
    CheckpointReader reader = CheckpointReader::open(folder);
    reader.verify_structure();
    const auto& manifest = reader.manifest();
    const auto state = ordered_json::parse(manifest.state_json);
    const int64_t tokens = state.value("tokens_seen", int64_t{0});
    line.update(ordered_json{{"step", manifest.step},
                             {"bytes", checkpoint::size_bytes(manifest)},
                             {"tensors", manifest.tensors.size()},
                             {"world_size", manifest.world_size},
                             {"tokens_seen", tokens}});
  } catch (const std::exception& error) {
    line["damage"] = error.what();
  }
  return line;
}

// The run directory that checkpoints in `store` belong to, however it is written:
// "run/checkpoints/" and "." inside of it too.
fs::path run_of(const fs::path& store) {
  const fs::path path = fs::absolute(store).lexically_normal();
  return (path.has_filename() ? path : path.parent_path()).parent_path();
}

// Held while old checkpoints are deleted. A run holds it as long as it trains; nothing where the
// folder is no run's.
class RunLock {
 public:
  explicit RunLock(const fs::path& store) {
    const fs::path run = run_of(store);
    const fs::path file = run / "lock";
    descriptor_ = ::open(file.c_str(), O_RDWR | O_CLOEXEC);
    if (descriptor_ < 0 && errno != ENOENT) {
      throw std::runtime_error("cannot tell whether a process trains in " + run.string() + ": " +
                               file.string() + ": " + std::strerror(errno));
    }
    if (descriptor_ >= 0 && ::flock(descriptor_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      ::close(descriptor_);
      throw std::runtime_error("a process trains in " + run.string() +
                               "; it deletes old checkpoints by itself (checkpoint.keep_latest_k)");
    }
  }
  ~RunLock() {
    if (descriptor_ >= 0) {
      ::close(descriptor_);
    }
  }
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  int descriptor_ = -1;
};

}  // namespace

int list_command(const CheckpointListOptions& options) {
  const fs::path store = store_of(options.run);
  const auto latest = checkpoint::read_latest(store);
  ordered_json lines = ordered_json::array();
  for (const fs::path& folder : checkpoint::list_checkpoints(store)) {
    lines.push_back(describe(folder, latest == folder));
  }
  ordered_json leftovers = ordered_json::array();
  for (const fs::path& folder : checkpoint::list_leftovers(store)) {
    leftovers.push_back(folder.filename().string());
  }
  if (options.json) {
    std::printf("%s\n",
                ordered_json{{"checkpoints", lines}, {"incomplete", leftovers}}.dump().c_str());
    return kExitDone;
  }
  for (const ordered_json& line : lines) {
    const std::string name = line["checkpoint"];
    if (line.contains("damage")) {
      std::printf("%s  damaged: %s\n", name.c_str(), line["damage"].get<std::string>().c_str());
      continue;
    }
    std::printf("%s  %10.1f MB  %4ld ranks  %14ld tokens  %5ld tensors%s\n", name.c_str(),
                line["bytes"].get<double>() / 1e6, line["world_size"].get<int64_t>(),
                line["tokens_seen"].get<int64_t>(), line["tensors"].get<int64_t>(),
                line["latest"].get<bool>() ? "  latest" : "");
  }
  for (const ordered_json& name : leftovers) {
    std::printf("%s  incomplete: being written, or its writer was killed\n",
                name.get<std::string>().c_str());
  }
  if (lines.empty()) {
    std::printf("no complete checkpoint in %s\n", store.c_str());
  }
  return kExitDone;
}

int verify_command(const CheckpointVerifyOptions& options) {
  const auto folders = is_checkpoint(options.path)
                           ? std::vector<fs::path>{options.path}
                           : checkpoint::list_checkpoints(store_of(options.path));
  ordered_json results = ordered_json::array();
  bool is_good = !folders.empty();
  for (const fs::path& folder : folders) {
    const std::string damage = damage_of(folder);
    is_good = is_good && damage.empty();
    results.push_back({{"checkpoint", folder.string()}, {"damage", damage}});
    if (!options.json) {
      std::printf("%s: %s\n", folder.c_str(), damage.empty() ? "good" : damage.c_str());
    }
  }
  if (options.json) {
    std::printf("%s\n", ordered_json{{"good", is_good}, {"checkpoints", results}}.dump().c_str());
  } else if (folders.empty()) {
    std::printf("no complete checkpoint in %s\n", options.path.c_str());
  }
  return is_good ? kExitDone : kExitFailure;
}

int diff_command(const CheckpointDiffOptions& options) {
  CheckpointReader first = CheckpointReader::open(checkpoint_of(options.paths[0]));
  CheckpointReader second = CheckpointReader::open(checkpoint_of(options.paths[1]));
  ByteProgress progress("comparing", checkpoint::size_bytes(first.manifest()));
  const auto differences =
      checkpoint::diff_checkpoints(first, second, [&](uint64_t done) { progress(done); });
  ordered_json lines = ordered_json::array();
  for (const checkpoint::CheckpointDifference& difference : differences) {
    lines.push_back({{"name", difference.name}, {"difference", difference.text}});
    if (!options.json) {
      std::printf("%s: %s\n", difference.name.c_str(), difference.text.c_str());
    }
  }
  if (options.json) {
    std::printf("%s\n",
                ordered_json{{"equal", lines.empty()}, {"differences", lines}}.dump().c_str());
  } else if (lines.empty()) {
    std::printf("%s and %s hold the same\n", first.folder().c_str(), second.folder().c_str());
  }
  return differences.empty() ? kExitDone : kExitFailure;
}

int export_whole_command(const CheckpointExportOptions& options) {
  CheckpointReader reader = CheckpointReader::open(checkpoint_of(options.path));
  ByteProgress progress("exporting", checkpoint::size_bytes(reader.manifest()));
  checkpoint::write_whole_tensors(reader, options.prefix, options.output,
                                  [&](uint64_t done) { progress(done); });
  std::fprintf(stderr, "wrote %s from %s\n", options.output.c_str(), reader.folder().c_str());
  return kExitDone;
}

int prune_command(const CheckpointPruneOptions& options) {
  const fs::path store = store_of(options.run);
  const RunLock lock(store);
  const auto doomed = checkpoint::prunable_checkpoints(store, options.keep);
  const auto leftovers = checkpoint::list_leftovers(store);
  if (!options.dry_run) {
    checkpoint::prune_checkpoints(store, options.keep);
    checkpoint::remove_leftovers(store);
  }
  const char* verb = options.dry_run ? "would delete" : "deleted";
  for (const auto& folders : {doomed, leftovers}) {
    for (const fs::path& folder : folders) {
      std::printf("%s %s\n", verb, folder.c_str());
    }
  }
  if (doomed.empty() && leftovers.empty()) {
    std::printf("nothing to delete\n");
  }
  return kExitDone;
}

}  // namespace narrowgauge::trainer

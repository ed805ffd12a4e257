#include "checkpoint/checkpoint_store.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <exception>
#include <utility>

#include "checkpoint/checkpoint_reader.h"
#include "checkpoint/durable_file.h"

namespace narrowgauge::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr const char* kStepPrefix = "step-";
constexpr const char* kLatestName = "latest";

// The step of "step-00000100"; nothing for any other name, .tmp included.
std::optional<int64_t> parse_step(const std::string& name) {
  const std::string prefix = kStepPrefix;
  if (name.rfind(prefix, 0) != 0) {
    return std::nullopt;
  }
  int64_t step = 0;
  const auto [end, error] =
      std::from_chars(name.data() + prefix.size(), name.data() + name.size(), step);
  const bool is_canonical = error == std::errc() && step >= 0 && step_name(step) == name;
  return is_canonical ? std::optional<int64_t>(step) : std::nullopt;
}

bool is_of_step(const fs::path& path, const char* extension) {
  return path.extension() == extension && parse_step(path.stem().string());
}

bool is_sound(const fs::path& folder) {
  try {
    CheckpointReader::open(folder).verify_structure();
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

}  // namespace

std::string step_name(int64_t step) {
  char digits[32];
  std::snprintf(digits, sizeof(digits), "%08lld", static_cast<long long>(step));
  return kStepPrefix + std::string(digits);
}

std::optional<fs::path> read_latest(const fs::path& store) {
  std::error_code error;
  if (!fs::is_regular_file(store / kLatestName, error)) {
    return std::nullopt;
  }
  std::string name;
  try {
    name = read_file(store / kLatestName, 4096);
  } catch (const std::exception&) {
    return std::nullopt;  // as good as none: the folders say what there is
  }
  name.erase(std::find(name.begin(), name.end(), '\n'), name.end());
  return parse_step(name) && fs::is_directory(store / name, error)
             ? std::optional<fs::path>(store / name)
             : std::nullopt;
}

std::vector<fs::path> list_checkpoints(const fs::path& store) {
  const auto latest = read_latest(store);
  const auto latest_step = latest ? parse_step(latest->filename().string()) : std::nullopt;
  std::vector<std::pair<bool, int64_t>> found;  // not of a later step than `latest`; step
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(store, error)) {
    if (const auto step = parse_step(entry.path().filename().string())) {
      found.emplace_back(!latest_step || *step <= *latest_step, *step);
    }
  }
  std::sort(found.rbegin(), found.rend());
  std::vector<fs::path> folders;
  for (const auto& [is_before, step] : found) {
    folders.push_back(store / step_name(step));
  }
  return folders;
}

std::vector<fs::path> list_leftovers(const fs::path& store) {
  std::vector<fs::path> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(store, error)) {
    if (is_of_step(entry.path(), ".tmp") || is_of_step(entry.path(), ".old")) {
      found.push_back(entry.path());
    }
  }
  std::sort(found.begin(), found.end());
  return found;
}

void remove_leftovers(const fs::path& store) {
  for (const fs::path& leftover : list_leftovers(store)) {
    const fs::path whole = store / leftover.stem();
    if (leftover.extension() == ".old" && !fs::exists(whole)) {
      fs::rename(leftover, whole);
    } else {
      fs::remove_all(leftover);
    }
  }
}

fs::path prepare_checkpoint(const fs::path& store, int64_t step) {
  create_durable_directories(store);
  const fs::path temporary = store / (step_name(step) + ".tmp");
  fs::remove_all(temporary);
  fs::create_directory(temporary);
  return temporary;
}

void commit_checkpoint(const fs::path& store, int64_t step) {
  const fs::path folder = store / step_name(step);
  replace_directory(fs::path(folder).concat(".tmp"), folder);
  write_durable_file(store / kLatestName, step_name(step) + "\n");
}

std::vector<fs::path> prunable_checkpoints(const fs::path& store, int64_t keep_latest_k) {
  std::vector<fs::path> folders = list_checkpoints(store);
  if (keep_latest_k <= 0 || static_cast<int64_t>(folders.size()) <= keep_latest_k) {
    return {};
  }
  const auto first_doomed = folders.begin() + keep_latest_k;
  if (std::none_of(folders.begin(), first_doomed, is_sound)) {
    return {};
  }
  return {first_doomed, folders.end()};
}

std::vector<fs::path> prune_checkpoints(const fs::path& store, int64_t keep_latest_k) {
  const std::vector<fs::path> doomed = prunable_checkpoints(store, keep_latest_k);
  for (const fs::path& folder : doomed) {
    // Renamed first: a deletion that is killed leaves no folder that looks complete.
    const fs::path temporary = fs::path(folder).concat(".tmp");
    fs::remove_all(temporary);
    fs::rename(folder, temporary);
    fs::remove_all(temporary);
  }
  return doomed;
}

}  // namespace narrowgauge::checkpoint

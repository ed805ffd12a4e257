#include "checkpoint/checkpoint_store.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <stdexcept>
#include <utility>

#include "checkpoint/durable_file.h"
#include "checkpoint/rank_agreement.h"
#include "checkpoint/strict_json.h"

namespace narrowgauge::checkpoint {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kStepPrefix = "step-";
constexpr const char* kLatestName = "latest";

std::string step_name(int64_t step) {
  char digits[32];
  std::snprintf(digits, sizeof(digits), "%08lld", static_cast<long long>(step));
  return kStepPrefix + std::string(digits);
}

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

// Names of complete checkpoints, newest step first.
std::vector<std::string> list_checkpoints(const fs::path& store) {
  std::vector<std::pair<int64_t, std::string>> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(store, error)) {
    const std::string name = entry.path().filename().string();
    if (const auto step = parse_step(name)) {
      found.emplace_back(*step, name);
    }
  }
  std::sort(found.rbegin(), found.rend());
  std::vector<std::string> names;
  for (auto& [step, name] : found) {
    names.push_back(std::move(name));
  }
  return names;
}

// What `latest` says; "" where there is none or it names nothing.
std::string read_latest(const fs::path& store) {
  if (!fs::exists(store / kLatestName)) {
    return "";
  }
  std::string name = read_file(store / kLatestName, 4096);
  name.erase(std::find(name.begin(), name.end(), '\n'), name.end());
  return parse_step(name) && fs::is_directory(store / name) ? name : "";
}

// Of a save or a deletion that was killed.
void remove_leftovers(const fs::path& store) {
  for (const auto& entry : fs::directory_iterator(store)) {
    const fs::path& path = entry.path();
    if (path.extension() == ".tmp" && parse_step(path.stem().string())) {
      fs::remove_all(path);
    }
  }
}

}  // namespace

void save_checkpoint(const fs::path& store, int64_t step, std::span<const ShardChunk> chunks,
                     const std::string& state_json, comm::Communicator& communicator) {
  TORCH_CHECK(step >= 0, "expected a checkpoint step of at least 0, got ", step);
  const fs::path folder = store / step_name(step);
  const fs::path temporary = fs::path(folder).concat(".tmp");
  const auto on_first_rank = [&](const auto& work) {
    on_all_ranks(communicator, [&] {
      if (communicator.rank() == 0) {
        work();
      }
      return std::string();
    });
  };
  try {
    on_first_rank([&] {
      if (fs::create_directories(store)) {
        sync_directory(store / "..");
      }
      remove_leftovers(store);
      fs::create_directory(temporary);
    });
    write_sharded_checkpoint(temporary, step, chunks, state_json, communicator);
    on_first_rank([&] {
      replace_directory(temporary, folder);
      write_durable_file(store / kLatestName, step_name(step) + "\n");
    });
  } catch (...) {
    if (communicator.rank() == 0) {
      std::error_code ignored;
      fs::remove_all(temporary, ignored);
    }
    throw;
  }
}

LatestCheckpoint find_latest_checkpoint(const fs::path& store) {
  LatestCheckpoint result;
  std::vector<std::string> candidates = list_checkpoints(store);
  const auto latest = std::find(candidates.begin(), candidates.end(), read_latest(store));
  if (latest != candidates.end()) {
    std::rotate(candidates.begin(), latest, latest + 1);
  }
  for (const std::string& name : candidates) {
    try {
      Checkpoint::open(store / name).verify();
      result.folder = store / name;
      return result;
    } catch (const std::exception& error) {
      result.warnings.push_back("checkpoint " + name +
                                " is damaged and passed over: " + error.what());
    }
  }
  return result;
}

LatestCheckpoint find_latest_checkpoint(const fs::path& store, comm::Communicator& communicator) {
  const std::string answer =
      on_all_ranks(communicator, [&] {
        if (communicator.rank() != 0) {
          return std::string();
        }
        const LatestCheckpoint found = find_latest_checkpoint(store);
        return json({found.folder ? found.folder->string() : "", found.warnings})
            .dump(-1, ' ', false, json::error_handler_t::replace);
      }).front();
  LatestCheckpoint result;
  const json parsed = json::parse(answer);
  if (const auto folder = parsed[0].get<std::string>(); !folder.empty()) {
    result.folder = folder;
  }
  result.warnings = parsed[1].get<std::vector<std::string>>();
  return result;
}

std::vector<fs::path> prune_checkpoints(const fs::path& store, int64_t keep_latest_k) {
  const std::vector<std::string> names = list_checkpoints(store);
  if (keep_latest_k <= 0 || static_cast<int64_t>(names.size()) <= keep_latest_k) {
    return {};
  }
  const std::string latest = read_latest(store);
  std::vector<std::string> doomed(names.begin() + keep_latest_k, names.end());
  doomed.erase(std::remove(doomed.begin(), doomed.end(), latest), doomed.end());
  const bool has_good = std::any_of(names.begin(), names.end(), [&](const std::string& name) {
    if (std::find(doomed.begin(), doomed.end(), name) != doomed.end()) {
      return false;
    }
    try {
      Checkpoint::open(store / name).verify_structure();
      return true;
    } catch (const std::exception&) {
      return false;
    }
  });
  std::vector<fs::path> deleted;
  for (const std::string& name : has_good ? doomed : std::vector<std::string>()) {
    // Renamed first: a deletion that is killed leaves no folder that looks complete.
    const fs::path temporary = fs::path(store / name).concat(".tmp");
    fs::remove_all(temporary);
    fs::rename(store / name, temporary);
    fs::remove_all(temporary);
    deleted.push_back(store / name);
  }
  return deleted;
}

}  // namespace narrowgauge::checkpoint

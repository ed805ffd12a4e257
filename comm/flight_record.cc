#include "comm/flight_record.h"

#include <unistd.h>

#include <array>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

namespace narrowgauge::comm {
namespace {

using Json = nlohmann::ordered_json;

double seconds(std::chrono::duration<double> duration) { return duration.count(); }

std::string host_name() {
  std::array<char, 256> name{};
  return gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "unknown";
}

Json to_json(const GroupProgress& group) {
  return {{"id", group.id},
          {"name", group.name},
          {"size", group.size},
          {"started", group.started},
          {"finished", group.finished}};
}

Json to_json(const Collective& collective, const std::string& group) {
  Json json = {{"sequence", collective.sequence},
               {"operation", collective.operation},
               {"group", group},
               {"dtype", c10::toString(collective.dtype)},
               {"bytes", collective.size_bytes},
               {"started", seconds(collective.started_at.time_since_epoch())},
               {"seconds", nullptr}};
  if (collective.finished) {
    json["seconds"] = seconds(collective.ended - collective.started);
  }
  return json;
}

}  // namespace

void FlightRecord::name_group(const std::string& id, const std::string& name, int size) {
  const std::lock_guard lock(mutex_);
  GroupProgress& group = groups_[id];
  group.id = id;
  group.name = name;
  group.size = size;
}

int64_t FlightRecord::start(const std::string& group_id, const char* operation,
                            c10::ScalarType dtype, int64_t size_bytes) {
  const std::lock_guard lock(mutex_);
  GroupProgress& group = groups_[group_id];
  ++group.started;
  group.operation = operation;
  Collective collective;
  collective.sequence = group.started;
  collective.group_id = group_id;
  collective.operation = operation;
  collective.dtype = dtype;
  collective.size_bytes = size_bytes;
  collective.started_at = std::chrono::system_clock::now();
  collective.started = std::chrono::steady_clock::now();
  collectives_.push_back(std::move(collective));
  // One that is pending stays: it is what the record is for.
  while (collectives_.size() > capacity_ && collectives_.front().finished) {
    collectives_.pop_front();
    ++first_ticket_;
  }
  return first_ticket_ + static_cast<int64_t>(collectives_.size()) - 1;
}

Collective* FlightRecord::find(int64_t ticket) {
  return ticket < first_ticket_ ? nullptr : &collectives_[ticket - first_ticket_];
}

void FlightRecord::end(Collective& collective) {
  collective.finished = true;
  collective.ended = std::chrono::steady_clock::now();
  collective.has_ended = nullptr;
  ++groups_[collective.group_id].finished;
}

void FlightRecord::finish(int64_t ticket) {
  const std::lock_guard lock(mutex_);
  if (Collective* collective = find(ticket)) {
    end(*collective);
  }
}

void FlightRecord::finish_when(int64_t ticket, std::function<bool()> has_ended) {
  const std::lock_guard lock(mutex_);
  if (Collective* collective = find(ticket)) {
    collective->has_ended = std::move(has_ended);
  }
}

void FlightRecord::poll() {
  const std::lock_guard lock(mutex_);
  for (Collective& collective : collectives_) {
    if (collective.has_ended && collective.has_ended()) {
      end(collective);
    }
  }
}

std::optional<Collective> FlightRecord::oldest_pending() const {
  const std::lock_guard lock(mutex_);
  for (const Collective& collective : collectives_) {
    if (!collective.finished) {
      return collective;
    }
  }
  return std::nullopt;
}

std::vector<GroupProgress> FlightRecord::progress() const {
  const std::lock_guard lock(mutex_);
  std::vector<GroupProgress> all;
  for (const auto& [id, group] : groups_) {
    all.push_back(group);
  }
  return all;
}

std::string FlightRecord::describe(const Collective& collective) const {
  const std::lock_guard lock(mutex_);
  return "#" + std::to_string(collective.sequence) + " " + collective.operation + " of " +
         std::to_string(collective.size_bytes) + " bytes of " + c10::toString(collective.dtype) +
         " in group " + groups_.at(collective.group_id).name;
}

void FlightRecord::write(const std::filesystem::path& directory, int rank, int world_size,
                         const std::string& reason) const {
  Json json = {{"rank", rank},
               {"world_size", world_size},
               {"host", host_name()},
               {"process", getpid()},
               {"reason", reason},
               {"groups", Json::array()},
               {"collectives", Json::array()}};
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, group] : groups_) {
      json["groups"].push_back(to_json(group));
    }
    for (const Collective& collective : collectives_) {
      json["collectives"].push_back(to_json(collective, groups_.at(collective.group_id).name));
    }
  }
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  const std::filesystem::path path = directory / ("rank-" + std::to_string(rank) + ".json");
  const std::filesystem::path unfinished = path.string() + ".tmp";
  std::ofstream file(unfinished);
  // A reason may quote bytes that are no UTF-8.
  file << json.dump(1, ' ', false, Json::error_handler_t::replace) << '\n';
  file.close();
  if (!error && file) {
    std::filesystem::rename(unfinished, path, error);
  }
  if (error || !file) {
    throw std::runtime_error("cannot write the flight record " + path.string() +
                             (error ? ": " + error.message() : ""));
  }
}

}  // namespace narrowgauge::comm

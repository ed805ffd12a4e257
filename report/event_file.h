#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace narrowgauge::report {

// A TensorBoard event file: TFRecords (length u64, masked crc32c of it, payload, masked crc32c of
// that; little endian) of tensorflow.Event messages, written by hand from event.proto and
// summary.proto. TensorBoard, and whatever reads its files, takes it as its own.
class EventFile {
 public:
  using Scalars = std::vector<std::pair<std::string, double>>;  // tag, value

  // Creates a new file in `folder` (made if missing), so that a resumed run adds one. Its first
  // records say the format's version and that the run (re)starts behind `last_step`: readers drop
  // what older files hold of later steps. Throws std::runtime_error if it cannot be created.
  EventFile(const std::filesystem::path& folder, int64_t last_step);
  ~EventFile();
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;

  // Appends one event. A record is written whole or not at all: on a full disk it is lost, with one
  // line on standard error, and the run goes on.
  void add_scalars(int64_t step, const Scalars& scalars);
  void add_text(int64_t step, const std::string& tag, const std::string& text);

  const std::filesystem::path& path() const { return path_; }

 private:
  void append(const std::string& event);

  std::filesystem::path path_;
  int descriptor_ = -1;
  bool reported_ = false;
};

}  // namespace narrowgauge::report

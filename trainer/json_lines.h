#pragma once

#include <cstdint>
#include <string>

namespace narrowgauge::trainer {

// A file of one JSON object a line, each with a "step": a log that survives kills, resuming and
// full disks.
class JsonLines {
 public:
  // Opens or creates the file. Keeps the lines of steps up to `last_step` and drops later ones,
  // which a resumed run writes again, and lines that are no JSON (the torn end of a killed run).
  // Where the disk leaves no room to rewrite the file it stays as it is, with a line on standard
  // error. Throws std::runtime_error if the file cannot be opened.
  JsonLines(const std::string& path, int64_t last_step);
  ~JsonLines();
  JsonLines(const JsonLines&) = delete;
  JsonLines& operator=(const JsonLines&) = delete;

  // Appends `line` whole or, on a full disk, not at all: a log must not end a run. Lost lines are
  // reported once until one succeeds again.
  void append(const std::string& line);

 private:
  std::string path_;
  int descriptor_ = -1;
  int64_t num_lost_ = 0;
};

}  // namespace narrowgauge::trainer

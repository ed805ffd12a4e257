#pragma once

#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace narrowgauge::bench {

// Another program, run beside this one. It reads nothing, and what it prints goes to a file. It has
// a process group of its own, so that Ctrl-C reaches this process alone, which then decides; it
// gets SIGTERM should this process die. Made and ended by the same thread, in a process with no
// others.
class ChildProcess {
 public:
  // `command` is a path and its arguments; `log` is appended to. Throws std::runtime_error if the
  // log cannot be opened or no process be made.
  ChildProcess(const std::vector<std::string>& command, const std::filesystem::path& log);
  // Kills it if it still runs.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // The exit code once it has ended; of one that a signal ended 128 + its number, and 127 where
  // `command` could not be started.
  std::optional<int> exit_code();

  // Asks it to end (SIGTERM).
  void terminate() const;

 private:
  pid_t process_ = -1;
  std::optional<int> exit_code_;
};

// The last line of a log that is not empty: what a program that failed said last. "" without one.
std::string last_line(const std::filesystem::path& log);

}  // namespace narrowgauge::bench

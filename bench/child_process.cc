#include "bench/child_process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <fstream>
#include <stdexcept>

namespace narrowgauge::bench {
namespace {

constexpr int kNotStarted = 127;

// In the child; only calls that are safe after fork().
[[noreturn]] void become(char* const* argv, int log, pid_t parent) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) {  // it died before prctl
    _exit(kNotStarted);
  }
  for (const int number : {SIGINT, SIGTERM, SIGUSR1}) {
    std::signal(number, SIG_DFL);
  }
  const int nothing = ::open("/dev/null", O_RDONLY);
  ::dup2(nothing, STDIN_FILENO);
  ::dup2(log, STDOUT_FILENO);
  ::dup2(log, STDERR_FILENO);
  ::execv(argv[0], argv);
  _exit(kNotStarted);
}

int decoded(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); }

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& command,
                           const std::filesystem::path& log) {
  const int descriptor = ::open(log.c_str(), O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor < 0) {
    throw std::runtime_error("cannot write " + log.string() + ": " + std::strerror(errno));
  }
  std::vector<std::string> copies = command;
  std::vector<char*> argv;
  for (std::string& copy : copies) {
    argv.push_back(copy.data());
  }
  argv.push_back(nullptr);
  const pid_t parent = getpid();
  process_ = ::fork();
  if (process_ == 0) {
    become(argv.data(), descriptor, parent);
  }
  const int reason = errno;
  ::close(descriptor);
  if (process_ < 0) {
    throw std::runtime_error("cannot start " + command.front() + ": " + std::strerror(reason));
  }
}

ChildProcess::~ChildProcess() {
  if (!exit_code_) {
    ::kill(process_, SIGKILL);
    ::waitpid(process_, nullptr, 0);
  }
}

std::optional<int> ChildProcess::exit_code() {
  int status = 0;
  if (!exit_code_ && ::waitpid(process_, &status, WNOHANG) == process_) {
    exit_code_ = decoded(status);
  }
  return exit_code_;
}

void ChildProcess::terminate() const {
  if (!exit_code_) {
    ::kill(process_, SIGTERM);
  }
}

std::string last_line(const std::filesystem::path& log) {
  std::ifstream file(log);
  std::string last;
  for (std::string line; std::getline(file, line);) {
    if (!line.empty()) {
      last = line;
    }
  }
  return last;
}

}  // namespace narrowgauge::bench

#include "trainer/training_process.h"

#include <utility>

namespace narrowgauge::trainer {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> train_command_line(const std::string& config_path,
                                            std::vector<std::string> overrides,
                                            const fs::path& run_dir) {
  std::vector<std::string> command = {fs::read_symlink("/proc/self/exe").string(), "train",
                                      config_path};
  command.insert(command.end(), std::make_move_iterator(overrides.begin()),
                 std::make_move_iterator(overrides.end()));
  command.push_back("job.run_dir=" + run_dir.string());
  return command;
}

const fs::path& created(const fs::path& folder) {
  fs::create_directories(folder);
  return folder;
}

}  // namespace

TrainingProcess::TrainingProcess(const std::string& config_path, std::vector<std::string> overrides,
                                 const fs::path& run_dir)
    : run_dir_(created(run_dir)),
      process_(train_command_line(config_path, std::move(overrides), run_dir),
               run_dir / "log.txt") {}

std::string TrainingProcess::describe_failure(int exit_code) const {
  return "exit code " + std::to_string(exit_code) + ": " + bench::last_line(run_dir_ / "log.txt");
}

}  // namespace narrowgauge::trainer

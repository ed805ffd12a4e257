#include "trainer/export_command.h"

#include <cstdio>
#include <filesystem>
#include <memory>
#include <stdexcept>

#include "comm/self_communicator.h"
#include "trainer/config_reader.h"
#include "trainer/dtype.h"
#include "trainer/export_run.h"
#include "trainer/model_shape.h"
#include "trainer/run_checkpoint.h"
#include "trainer/run_directory.h"
#include "trainer/run_tokenizer.h"

namespace narrowgauge::trainer {

int export_command(const ExportOptions& options) {
  const std::filesystem::path config_file = std::filesystem::path(options.run) / "config.yaml";
  if (!std::filesystem::exists(config_file)) {
    throw UsageError(options.run + " is no run directory: it has no config.yaml");
  }
  TrainConfig config = read_config(config_file, {});
  config.job.run_dir = options.run;  // the run may have been moved
  const RunDirectory run = RunDirectory::attach(config);
  fill_model_shape(config.model, run);
  const auto tokenizer = load_run_tokenizer(config, run);
  const auto world = std::make_shared<comm::SelfCommunicator>();
  const auto folder = find_checkpoint(run.checkpoints(), options.step, *world);
  if (!folder) {
    throw std::runtime_error("no checkpoint in " + run.checkpoints().string() +
                             "; train it with checkpoint.enable=true first");
  }
  const std::filesystem::path output =
      options.output.empty() ? run.huggingface() : std::filesystem::path(options.output);
  export_huggingface_directory(run, config.model, tokenizer.get(), output,
                               parse_dtype(options.dtype),
                               full_parameter_reader(*folder, config.model));
  std::fprintf(stderr, "exported %s from %s\n", output.c_str(), folder->c_str());
  return kExitDone;
}

}  // namespace narrowgauge::trainer

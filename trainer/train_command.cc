#include "trainer/train_command.h"

#include <ATen/Parallel.h>
#include <malloc.h>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <string>
#include <thread>
#include <utility>

#include "trainer/config_check.h"
#include "trainer/config_reader.h"
#include "trainer/device.h"
#include "trainer/model_shape.h"
#include "trainer/run_directory.h"
#include "trainer/trainer.h"
#include "trainer/training_data.h"

namespace narrowgauge::trainer {
namespace {

int64_t choose_num_threads(const TrainConfig& config, const comm::MpiSession& session) {
  if (config.training.num_threads > 0) {
    return config.training.num_threads;
  }
  const auto processors = static_cast<int>(std::thread::hardware_concurrency());
  return std::max(1, processors / session.local_size());
}

// Keeps freed memory in the process. A step frees and takes the same large tensors again; glibc
// would return them to the kernel each time, and the page faults cost a tenth of a step on the CPU.
void keep_freed_memory() {
  constexpr int kMegabytes = 1 << 20;
  mallopt(M_MMAP_THRESHOLD, 1024 * kMegabytes);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_TOP_PAD, 64 * kMegabytes);
}

void describe_start(const TrainConfig& config, const RunDirectory& run, int world_size,
                    at::Device device) {
  std::fprintf(
      stderr,
      "run %s: %s of dim %ld, %ld layers, vocabulary %ld; %d rank%s on %s, %ld threads each\n",
      run.path().c_str(), config.model.architecture.c_str(), config.model.dim,
      config.model.num_layers, config.model.vocab_size, world_size, world_size == 1 ? "" : "s",
      device.str().c_str(), config.training.num_threads);
  for (const std::string& change : run.changes()) {
    std::fprintf(stderr, "changed since the run was last started: %s\n", change.c_str());
  }
}

}  // namespace

int train_command(const TrainOptions& options, comm::MpiSession& session) {
  keep_freed_memory();
  TrainConfig config = read_config(options.config_path, options.overrides);
  const auto world = session.world();
  plan_ranks(config, world->size());
  const RunDirectory run =
      world->rank() == 0 ? RunDirectory::open(config) : RunDirectory::attach(config);
  config.training.num_threads = choose_num_threads(config, session);
  at::set_num_threads(static_cast<int>(config.training.num_threads));
  const at::Device device = select_device(config.training.device, world->size());
  fill_model_shape(config.model);
  TrainingData data = open_training_data(config, run, *world);
  check(config);
  if (world->rank() == 0) {
    describe_start(config, run, world->size(), device);
  }

  Trainer trainer(config, run, std::move(data), world, device);
  if (world->rank() == 0) {
    run.write_config(config);
  }
  trainer.train();
  if (trainer.stopped_by()) {
    if (world->rank() == 0) {
      std::fprintf(stderr, "stopped by %s after a checkpoint; start again to resume\n",
                   trainer.stopped_by()->c_str());
    }
    return kExitStopped;
  }
  if (config.export_.enable) {
    trainer.export_huggingface();
  }
  return kExitDone;
}

}  // namespace narrowgauge::trainer

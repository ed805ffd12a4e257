#include "trainer/train_command.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/core/CPUAllocator.h>
#include <malloc.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "checkpoint/durable_file.h"
#include "memory/tensor_arena.h"
#include "trainer/config_check.h"
#include "trainer/config_reader.h"
#include "trainer/device.h"
#include "trainer/export_run.h"
#include "trainer/model_shape.h"
#include "trainer/rank_device.h"
#include "trainer/run_directory.h"
#include "trainer/run_end.h"
#include "trainer/stop_signal.h"
#include "trainer/trainer.h"
#include "trainer/training_data.h"

namespace narrowgauge::trainer {
namespace {

// A rank's share of its host's processors, at most as many as it may run on. mpirun binds each of
// one or two ranks to a single core unless told otherwise; such a binding is widened.
int64_t share_of_processors(int local_size) {
  const auto online = static_cast<int64_t>(std::thread::hardware_concurrency());
  const int64_t share = std::max<int64_t>(1, online / local_size);
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) >= share) {
    return share;
  }
  cpu_set_t all;
  CPU_ZERO(&all);
  for (int64_t processor = 0; processor < online; ++processor) {
    CPU_SET(processor, &all);
  }
  const bool launched = std::getenv("OMPI_COMM_WORLD_RANK") != nullptr;
  return launched && sched_setaffinity(0, sizeof all, &all) == 0 ? share : CPU_COUNT(&allowed);
}

// Keeps freed memory in the process: a step frees and takes the same sizes again, and what glibc
// returned to the kernel would cost page faults each time. Large tensors come from an arena with
// as many addresses as the machine has memory, unless NARROWGAUGE_NO_TENSOR_ARENA is set (a memory
// checker then sees every tensor). It is never deleted: tensors live until the process ends.
void keep_freed_memory() {
  constexpr int kMegabytes = 1 << 20;
  mallopt(M_MMAP_THRESHOLD, 1024 * kMegabytes);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_TOP_PAD, 64 * kMegabytes);
  if (std::getenv("NARROWGAUGE_NO_TENSOR_ARENA") != nullptr) {
    return;
  }
  const auto memory_bytes =
      static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  c10::SetCPUAllocator(new memory::TensorArena(memory_bytes, *c10::GetDefaultCPUAllocator()));
}

std::string counted(int64_t number, const char* noun) {
  return std::to_string(number) + " " + noun + (number == 1 ? "" : "s");
}

// "4 ranks on 2 hosts (2 each)", as MPI sees the hosts; equal on all ranks. Collective.
std::string describe_ranks(comm::Communicator& world, const comm::MpiSession& session) {
  // The first rank of each host says how many it has, the others 0.
  const at::Tensor ranks_of_host = at::empty({world.size()}, at::kLong);
  world.all_gather(ranks_of_host,
                   at::full({1}, session.local_rank() == 0 ? session.local_size() : 0, at::kLong));
  int64_t num_hosts = 0;
  int64_t fewest = world.size();
  int64_t most = 0;
  for (int rank = 0; rank < world.size(); ++rank) {
    const int64_t count = ranks_of_host.const_data_ptr<int64_t>()[rank];
    if (count > 0) {
      ++num_hosts;
      fewest = std::min(fewest, count);
      most = std::max(most, count);
    }
  }
  const std::string ranks = counted(world.size(), "rank");
  if (num_hosts == 1) {
    return ranks;
  }
  const std::string range = fewest == most ? "" : std::to_string(fewest) + " to ";
  return ranks + " on " + counted(num_hosts, "host") + " (" + range + std::to_string(most) +
         " each)";
}

void describe_start(const TrainConfig& config, const RunDirectory& run, const std::string& ranks,
                    at::Device device) {
  std::fprintf(stderr, "run %s: %s of dim %ld, %ld layers, vocabulary %ld; %s, %s, %s each\n",
               run.path().c_str(), config.model.architecture.c_str(), config.model.dim,
               config.model.num_layers, config.model.vocab_size, ranks.c_str(),
               device.str().c_str(), counted(config.training.num_threads, "thread").c_str());
}

// Trains to the end or a stop. At a loss spike the run begins anew where its last checkpoint left
// it, behind the batches that led to the spike, as often as it gets on from there. A
// checkpoint.load_step is where it begins, not where it goes back to once it has saved.
std::unique_ptr<Trainer> train_past_spikes(TrainConfig& config, const RunDirectory& run,
                                           const TrainingData& data,
                                           const std::shared_ptr<comm::Communicator>& world,
                                           at::Device device, const StopSignal& stop_signal,
                                           const std::function<void()>& under_way) {
  constexpr int kMaxFromOneStep = 3;
  auto trainer = std::make_unique<Trainer>(config, run, data, world, device);
  if (world->rank() == 0) {
    run.write_config(config);
    if (data.chat_template) {
      checkpoint::write_durable_file(run.chat_template_file(), data.chat_template->source());
    }
  }
  int64_t from_step = -1;
  for (int times = 0;;) {
    const int64_t first_step = trainer->step();
    times = first_step == from_step ? times + 1 : 0;
    from_step = first_step;
    trainer->train(stop_signal, under_way);
    const std::optional<LossSpike> spike = trainer->spike();
    if (!spike) {
      return trainer;
    }
    if (times == kMaxFromOneStep) {
      throw std::runtime_error(
          "step " + std::to_string(spike->step) + ": loss is " + std::to_string(spike->loss) +
          ", the " + std::to_string(kMaxFromOneStep + 1) + ". spike on the way from step " +
          std::to_string(from_step) +
          "; lower optimizer.lr, raise training.sigma_factor or begin earlier with "
          "checkpoint.load_step");
    }
    if (trainer->saved_step() > first_step) {
      config.checkpoint.load_step = -1;  // `latest` is this run's own
    }
    trainer.reset();  // before the next one takes its memory
    trainer = std::make_unique<Trainer>(config, run, data, world, device, spike);
  }
}

// The run itself, once its data and device are known. Returns the exit code.
int train_and_export(TrainConfig& config, const RunDirectory& run, const TrainingData& data,
                     const std::shared_ptr<comm::Communicator>& world, at::Device device,
                     const StopSignal& stop_signal, const std::function<void()>& under_way) {
  const bool is_first_rank = world->rank() == 0;
  const auto finished = train_past_spikes(config, run, data, world, device, stop_signal, under_way);
  Trainer& trainer = *finished;
  const auto end = [&] {
    if (is_first_rank) {
      end_run(config, plan_ranks(config, world->size()), run,
              {trainer.mean_step_seconds(), peak_memory_bytes(device)});
    }
  };
  if (const auto signal = trainer.stopped_by()) {
    if (!trainer.is_saved()) {
      throw std::runtime_error("stopped by " + *signal + "; the last steps are in no checkpoint");
    }
    end();
    if (is_first_rank) {
      std::fprintf(stderr, "stopped by %s after a checkpoint; start again to resume\n",
                   signal->c_str());
    }
    return kExitStopped;
  }
  if (config.export_.enable) {
    trainer.export_model();
  }
  end();
  if (config.checkpoint.enable && !trainer.is_saved()) {
    throw std::runtime_error("the last step is in no checkpoint; make room and start again");
  }
  return kExitDone;
}

}  // namespace

int train_command(const TrainOptions& options, comm::MpiSession& session) {
  keep_freed_memory();
  const StopSignal stop_signal;
  TrainConfig config = read_config(options.config_path, options.overrides);
  if (session.under_launcher()) {
    session.watch({.timeout = std::chrono::seconds(config.comm.init_timeout_seconds),
                   .record_directory = RunDirectory::attach(config).flight_record(),
                   .record_capacity = static_cast<size_t>(config.comm.trace_buf_size)});
  }
  const auto world = session.world();  // of the CPU: what ranks agree on before they train
  plan_ranks(config, world->size());
  const RunDirectory run =
      world->rank() == 0 ? RunDirectory::open(config) : RunDirectory::attach(config);
  if (config.training.num_threads == 0) {
    config.training.num_threads = share_of_processors(session.local_size());
  }
  at::set_num_threads(static_cast<int>(config.training.num_threads));
  const at::Device device = select_rank_device(
      config.training.device, {session.local_rank(), session.local_size()}, *world);
  fill_model_shape(config.model, run);
  const TrainingData data = open_training_data(config, run, *world);
  check(config);
  const std::string ranks = describe_ranks(*world, session);
  if (world->rank() == 0) {
    describe_start(config, run, ranks, device);
    if (config.export_.enable) {
      check_export(run.huggingface(), data.tokenizer.get());
    }
  }

  const auto under_way = [&] {
    session.set_timeout(std::chrono::seconds(config.comm.train_timeout_seconds));
  };
  try {
    return train_and_export(config, run, data, device.is_cpu() ? world : session.world(device),
                            device, stop_signal, under_way);
  } catch (const std::exception& error) {
    const std::string shortage =
        explain_memory_shortage(error, config, plan_ranks(config, world->size()));
    if (shortage.empty()) {
      throw;
    }
    throw std::runtime_error(shortage);
  }
}

}  // namespace narrowgauge::trainer

#include "checkpoint/checkpoint_saver.h"

#include <ATen/ops/empty.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <functional>
#include <future>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>

#include "checkpoint/checkpoint_store.h"
#include "checkpoint/durable_file.h"
#include "checkpoint/rank_agreement.h"
#include "checkpoint/rank_file.h"
#include "checkpoint/strict_json.h"

namespace narrowgauge::checkpoint {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Training has the processor first: the disk is what a save waits for. 10 of 19; threads have
// priorities of their own on Linux.
void step_aside() { ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), 10); }

// A dense CPU copy of `source` in `target`, which is made anew where it does not fit; page-locked
// where the source is on a GPU, so that the copy runs at the bus's speed.
void stage(const at::Tensor& source, at::Tensor& target) {
  const bool fits = target.defined() && target.scalar_type() == source.scalar_type() &&
                    target.sizes() == source.sizes();
  if (!fits) {
    target = at::empty(
        source.sizes(),
        source.options().device(at::kCPU).requires_grad(false).pinned_memory(source.is_cuda()));
  }
  target.copy_(source.detach());
}

// A thread that cannot be started is a failure like any other of its work.
std::future<std::string> launch(std::function<std::string()> work) {
  try {
    return std::async(std::launch::async, std::move(work));
  } catch (const std::system_error&) {
    std::promise<std::string> failed;
    failed.set_exception(std::current_exception());
    return failed.get_future();
  }
}

}  // namespace

struct CheckpointSaver::Save {
  enum class Phase { kWriting, kCommitting, kFailed } phase = Phase::kWriting;
  int64_t step = 0;
  fs::path folder;  // step-N.tmp
  CheckpointManifest manifest;
  std::string state_json;
  std::vector<RankFileTensor> tensors;
  uint64_t my_bytes = 0;
  WriteProgress progress;
  double started = 0;
  double staging_seconds = 0;
  std::string error;             // of phase kFailed
  std::future<std::string> job;  // last, so that it ends before what it uses
};

CheckpointSaver::CheckpointSaver(fs::path store, int64_t keep_latest_k,
                                 comm::Communicator& communicator)
    : store_(std::move(store)), keep_latest_k_(keep_latest_k), communicator_(communicator) {}

CheckpointSaver::~CheckpointSaver() {
  if (save_ == nullptr) {
    return;
  }
  if (communicator_.size() > 1) {
    save_->progress.is_cancelled = true;
    return;
  }
  try {
    wait();
  } catch (const std::exception&) {
    // Nobody is left to tell; the folder keeps its .tmp.
  }
}

int64_t CheckpointSaver::step_under_way() const { return save_->step; }

double CheckpointSaver::fraction_done() const {
  if (save_ == nullptr || save_->my_bytes == 0) {
    return 1;
  }
  return static_cast<double>(save_->progress.bytes_done) / static_cast<double>(save_->my_bytes);
}

void CheckpointSaver::start(int64_t step, std::span<const ShardChunk> chunks,
                            const std::string& state_json, Staging staging) {
  TORCH_CHECK(step >= 0, "expected a checkpoint step of at least 0, got ", step);
  TORCH_CHECK(!is_busy(), "expected no save under way, got step ", step_under_way());
  auto save = std::make_unique<Save>();
  save->started = now_seconds();
  save->step = step;
  save->state_json = state_json;
  save->folder = store_ / (step_name(step) + ".tmp");
  save->manifest = planner_.plan(chunks, step, communicator_);
  const auto mine = planned_for(communicator_.rank(), chunks, save->manifest);
  staged_.resize(staging == Staging::kCopy ? mine.size() : 0);
  for (size_t i = 0; i < mine.size(); ++i) {
    const at::Tensor& local = chunks[mine[i].index].local;
    if (staging == Staging::kCopy) {
      stage(local, staged_[i]);
    }
    save->tensors.push_back({mine[i].name_in_file, staging == Staging::kCopy ? staged_[i] : local});
    save->my_bytes += local.nbytes();
  }
  save_ = std::move(save);
  try {
    on_all_ranks(communicator_, [&] {
      return communicator_.rank() == 0 ? prepare_checkpoint(store_, step).string() : "";
    });
    save_->job = launch([this, staging, under_way = save_.get()] {
      if (staging == Staging::kCopy) {
        step_aside();
      }
      return write(*under_way);
    });
  } catch (const comm::CommunicatorAborted&) {
    throw;
  } catch (const std::exception& error) {
    save_->phase = Save::Phase::kFailed;
    save_->error = error.what();
  }
  save_->staging_seconds = now_seconds() - save_->started;
}

std::string CheckpointSaver::write(Save& save) const {
  return save.tensors.empty() ? ""
                              : write_rank_file(save.folder / rank_file_name(communicator_.rank()),
                                                save.tensors, save.progress);
}

// What could not be deleted, one to a line.
std::string CheckpointSaver::commit(const Save& save) const {
  write_durable_file(save.folder / kManifestName, manifest_json(save.manifest));
  commit_checkpoint(store_, save.step);
  try {
    remove_leftovers(store_);
    prune_checkpoints(store_, keep_latest_k_);
    return "";
  } catch (const std::exception& error) {
    return std::string("cannot delete old checkpoints: ") + error.what();
  }
}

bool CheckpointSaver::all_jobs_done() {
  const bool is_running =
      save_->job.valid() && save_->job.wait_for(milliseconds(0)) != std::future_status::ready;
  const at::Tensor num_running = at::empty({1}, at::kLong).fill_(is_running ? 1 : 0);
  communicator_.all_reduce(num_running, comm::ReduceOp::kSum);
  return num_running.item<int64_t>() == 0;
}

std::optional<SaveOutcome> CheckpointSaver::poll() {
  if (!is_busy()) {
    return std::nullopt;
  }
  if (save_->phase == Save::Phase::kFailed) {
    return end(save_->error);
  }
  if (!all_jobs_done()) {
    return std::nullopt;
  }
  std::vector<std::string> results;
  try {
    results = on_all_ranks(communicator_,
                           [&] { return save_->job.valid() ? save_->job.get() : std::string(); });
  } catch (const comm::CommunicatorAborted&) {
    throw;
  } catch (const std::exception& error) {
    return end(error.what());
  }
  if (save_->phase == Save::Phase::kCommitting) {
    SaveOutcome outcome = end("");
    if (!results.front().empty()) {
      outcome.warnings.push_back(results.front());
    }
    return outcome;
  }
  save_->phase = Save::Phase::kCommitting;
  if (communicator_.rank() == 0) {
    save_->job = launch([this, results, under_way = save_.get()] {
      add_to_manifest(under_way->manifest, results);
      under_way->manifest.state_json = under_way->state_json;
      return commit(*under_way);
    });
  }
  return std::nullopt;
}

// No rank writes any more.
SaveOutcome CheckpointSaver::end(std::string error) {
  SaveOutcome outcome;
  outcome.step = save_->step;
  outcome.error = std::move(error);
  outcome.size_bytes = size_bytes(save_->manifest);
  outcome.seconds = now_seconds() - save_->started;
  outcome.staging_seconds = save_->staging_seconds;
  const fs::path folder = save_->folder;
  save_.reset();
  if (!outcome.error.empty() && communicator_.rank() == 0) {
    std::error_code ignored;
    fs::remove_all(folder, ignored);  // what there is of it takes room
  }
  return outcome;
}

// Returns as soon as this rank's thread is done; one that has none, or whose is, looks again later.
void CheckpointSaver::await_job(milliseconds pause) const {
  if (save_->job.valid() && save_->job.wait_for(milliseconds(0)) != std::future_status::ready) {
    save_->job.wait_for(pause);
  } else {
    std::this_thread::sleep_for(pause);
  }
}

std::optional<SaveOutcome> CheckpointSaver::wait(const std::function<void(double)>& progress) {
  milliseconds pause(1);
  auto phase = Save::Phase::kWriting;
  while (is_busy()) {
    if (auto outcome = poll()) {
      return outcome;
    }
    if (progress) {
      progress(fraction_done());
    }
    if (save_->phase != phase) {
      phase = save_->phase;
      pause = milliseconds(1);
    }
    await_job(pause);
    // Short waits for small checkpoints, few looks at large ones.
    pause = std::min(2 * pause, milliseconds(50));
  }
  return std::nullopt;
}

void save_checkpoint(const fs::path& store, int64_t step, std::span<const ShardChunk> chunks,
                     const std::string& state_json, comm::Communicator& communicator) {
  CheckpointSaver saver(store, /*keep_latest_k=*/0, communicator);
  saver.start(step, chunks, state_json, CheckpointSaver::Staging::kInPlace);
  const auto outcome = saver.wait();
  if (!outcome->error.empty()) {
    throw std::runtime_error(outcome->error);
  }
}

}  // namespace narrowgauge::checkpoint

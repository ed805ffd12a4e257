#include "trainer/run_saver.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>
#include <thread>
#include <utility>

#include "trainer/stage_progress.h"

namespace narrowgauge::trainer {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kTellSeconds = 2;  // what takes longer is told
constexpr int kLastTries = 3;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string step_text(int64_t step) { return "step " + std::to_string(step) + "  "; }

}  // namespace

RunSaver::RunSaver(const CheckpointConfig& config, std::filesystem::path store,
                   comm::Communicator& world, int64_t saved_step,
                   std::function<RunSnapshot()> snapshot)
    : config_(config),
      world_(world),
      snapshot_(std::move(snapshot)),
      saver_(std::move(store), config.keep_latest_k, world),
      saved_step_(saved_step) {}

StepReport RunSaver::after_step(int64_t step, bool is_last) {
  step_ = step;
  StepReport report;
  if (const auto outcome = saver_.poll()) {
    take(*outcome, report);
  }
  const bool is_under_way = saver_.is_busy() && saver_.step_under_way() == step;
  const bool is_due = is_last || step % config_.interval == 0 ||
                      (retry_pause_ > 0 && step >= retry_step_ && !saver_.is_busy());
  if (is_due && step != saved_step_ && !is_under_way) {
    begin(step, is_last, report);
  }
  if (is_last) {
    wait(report);
    for (int tries = 0; tries < kLastTries && saved_step_ != step; ++tries) {
      std::this_thread::sleep_for(std::chrono::seconds(1 << tries));
      begin(step, is_last, report);
      wait(report);
    }
  }
  return report;
}

StepReport RunSaver::settle() {
  StepReport report;
  wait(report);
  return report;
}

void RunSaver::begin(int64_t step, bool is_last, StepReport& report) {
  const auto started = Clock::now();
  const bool had_to_wait = saver_.is_busy();
  wait(report);
  if (const double seconds = seconds_since(started); had_to_wait && seconds > kTellSeconds) {
    char text[160];
    std::snprintf(text, sizeof text,
                  "waited %.1f s until the checkpoint before was written; raise "
                  "checkpoint.interval or use a faster disk",
                  seconds);
    report.warnings.push_back(step_text(step) + text);
  }
  // Who waits for the disk anyway needs no copy.
  const bool is_beside = config_.async_mode == "async" && !is_last;
  const RunSnapshot snapshot = snapshot_();
  saver_.start(snapshot.step, snapshot.chunks, snapshot.state_json,
               is_beside ? checkpoint::CheckpointSaver::Staging::kCopy
                         : checkpoint::CheckpointSaver::Staging::kInPlace);
  if (!is_beside) {
    wait(report);
  }
}

void RunSaver::wait(StepReport& report) {
  const auto started = Clock::now();
  std::optional<StageProgress> progress;
  const auto outcome = saver_.wait([&](double fraction) {
    if (world_.rank() == 0 && seconds_since(started) > kTellSeconds) {
      (progress ? *progress : progress.emplace())
          .update("writing checkpoint of step " + std::to_string(saver_.step_under_way()),
                  fraction);
    }
  });
  progress.reset();
  if (outcome) {
    take(*outcome, report);
  }
}

void RunSaver::take(const checkpoint::SaveOutcome& outcome, StepReport& report) {
  for (const std::string& warning : outcome.warnings) {
    report.warnings.push_back(step_text(outcome.step) + warning);
  }
  if (outcome.error.empty()) {
    saved_step_ = outcome.step;
    retry_pause_ = 0;
    if (outcome.seconds > kTellSeconds) {
      char text[160];
      std::snprintf(text, sizeof text, "saved: %.2f GB in %.1f s, of which the step waited %.2f s",
                    static_cast<double>(outcome.size_bytes) / 1e9, outcome.seconds,
                    outcome.staging_seconds);
      report.warnings.push_back(step_text(outcome.step) + text);
    }
    return;
  }
  ++num_failures_;
  retry_pause_ = std::max<int64_t>(1, 2 * retry_pause_);
  retry_step_ = step_ + retry_pause_;
  report.warnings.push_back(step_text(outcome.step) + "no checkpoint: " + outcome.error +
                            "; training goes on, older checkpoints stand, failures so far: " +
                            std::to_string(num_failures_));
}

std::string RunSaver::note() const {
  if (!saver_.is_busy()) {
    return "";
  }
  char text[64];
  std::snprintf(text, sizeof text, "saving step %lld: %.0f %%",
                static_cast<long long>(saver_.step_under_way()), 100 * saver_.fraction_done());
  return text;
}

}  // namespace narrowgauge::trainer

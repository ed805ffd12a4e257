#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "checkpoint/checkpoint_saver.h"
#include "comm/communicator.h"
#include "trainer/config.h"
#include "trainer/run_checkpoint.h"
#include "trainer/step_action.h"

namespace narrowgauge::trainer {

// When a run saves, and what becomes of a save that fails: the run goes on, older checkpoints
// stand, and the save is tried again 1, 2, 4, ... steps later until one succeeds, at the end of the
// run three times a few seconds apart. Methods are collective.
class RunSaver {
 public:
  // `snapshot` tells what to save, as it is when it is called. saved_step: of the checkpoint the
  // run goes on from, -1 in a new one.
  RunSaver(const CheckpointConfig& config, std::filesystem::path store, comm::Communicator& world,
           int64_t saved_step, std::function<RunSnapshot()> snapshot);

  // After every step. Saves where the interval says so, and where `is_last` (the run ends or was
  // told to stop); returns then when all is on the disk or given up, else as soon as tensors may
  // change.
  StepReport after_step(int64_t step, bool is_last);

  // Waits for the save under way, if any: before a run leaves its loop to begin anew from its last
  // checkpoint.
  StepReport settle();

  // Of the newest complete checkpoint; -1: none.
  int64_t saved_step() const { return saved_step_; }

  // What is under way, for the line of progress: "saving step 500: 43 %", or "".
  std::string note() const;

 private:
  void begin(int64_t step, bool is_last, StepReport& report);
  // Waits for the save under way, with progress on standard error where that takes long.
  void wait(StepReport& report);
  void take(const checkpoint::SaveOutcome& outcome, StepReport& report);

  const CheckpointConfig& config_;
  comm::Communicator& world_;
  std::function<RunSnapshot()> snapshot_;
  checkpoint::CheckpointSaver saver_;
  int64_t saved_step_;
  int64_t step_ = 0;          // the run stands at
  int64_t num_failures_ = 0;  // in this process
  int64_t retry_pause_ = 0;   // steps between the last failure and the next try; 0: none failed
  int64_t retry_step_ = 0;
};

}  // namespace narrowgauge::trainer

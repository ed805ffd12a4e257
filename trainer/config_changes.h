#pragma once

#include <map>
#include <string>
#include <vector>

#include "trainer/config.h"

namespace narrowgauge::trainer {

// A key that has another value than it had.
struct ConfigChange {
  std::string key;  // "optimizer.lr"
  std::string before;
  std::string now;
  // With the new value, going on would silently train something else: another model, other data in
  // another order, another update rule over the same state.
  bool changes_run = false;

  // "optimizer.lr: 0.001 -> 0.002"
  std::string text() const { return key + ": " + before + " -> " + now; }
};

// The values of all keys that say how a run computes: what a checkpoint remembers. Not among them
// is what may differ from start to start (job.run_dir, training.num_threads, checkpoint.load_step
// and allow_changes).
std::map<std::string, std::string> config_texts(const TrainConfig& config);

// What differs, in the schema's order. Keys that `before` does not have are of a later version and
// count as unchanged; those that `now` leaves to be found out (model.vocab_size 0, the
// shape of model.initial_load_path) as well.
std::vector<ConfigChange> config_changes(const std::map<std::string, std::string>& before,
                                         const TrainConfig& now);

// Whether checkpoint.allow_changes names `key`.
bool allows_change(const TrainConfig& config, const std::string& key);

// Throws ConfigError, `holder` ("job.run_dir runs/a") holding another run, for the first change
// that changes the run and is not allowed, and for a name in allow_changes that is no key.
void check_changes(const std::vector<ConfigChange>& changes, const TrainConfig& config,
                   const std::string& holder);

}  // namespace narrowgauge::trainer

#include "trainer/config_changes.h"

#include <algorithm>
#include <set>

#include "trainer/config_schema.h"
#include "trainer/config_writer.h"

namespace narrowgauge::trainer {
namespace {

bool changes_run(const ConfigKey& key) {
  static const std::set<std::string> kKeys = {
      "training.seq_len",    "training.seed",   "data.train",
      "data.validation",     "data.text_field", "data.validation_fraction",
      "data.weights",        "data.packing",    "data.chat_template",
      "data.train_on_input", "optimizer.name"};
  return key.section == "model" || key.section == "tokenizer" || kKeys.contains(key.path());
}

bool is_remembered(const ConfigKey& key) {
  static const std::set<std::string> kOfOneStart = {
      "job.run_dir", "checkpoint.load_step", "checkpoint.allow_changes", "training.num_threads"};
  return !kOfOneStart.contains(key.path());
}

bool is_left_open(const ConfigKey& key, const TrainConfig& config) {
  return (key.path() == "model.vocab_size" && config.model.vocab_size == 0) ||
         // The shape comes with the directory; tensors of another one do not fit the checkpoint.
         (key.is_model_shape && !config.model.initial_load_path.empty());
}

}  // namespace

std::map<std::string, std::string> config_texts(const TrainConfig& config) {
  std::map<std::string, std::string> texts;
  for (const ConfigKey& key : config_schema()) {
    if (is_remembered(key)) {
      texts[key.path()] = format_value(key, config);
    }
  }
  return texts;
}

std::vector<ConfigChange> config_changes(const std::map<std::string, std::string>& before,
                                         const TrainConfig& now) {
  std::vector<ConfigChange> changes;
  for (const ConfigKey& key : config_schema()) {
    const auto known = before.find(key.path());
    if (known == before.end() || !is_remembered(key) || is_left_open(key, now)) {
      continue;
    }
    if (std::string text = format_value(key, now); text != known->second) {
      changes.push_back({key.path(), known->second, std::move(text), changes_run(key)});
    }
  }
  return changes;
}

bool allows_change(const TrainConfig& config, const std::string& key) {
  const auto& allowed = config.checkpoint.allow_changes;
  return std::find(allowed.begin(), allowed.end(), key) != allowed.end();
}

void check_changes(const std::vector<ConfigChange>& changes, const TrainConfig& config,
                   const std::string& holder) {
  for (const std::string& name : config.checkpoint.allow_changes) {
    const auto keys = config_schema();
    if (std::none_of(keys.begin(), keys.end(),
                     [&](const ConfigKey& key) { return key.path() == name; })) {
      throw ConfigError("checkpoint.allow_changes: expected keys such as data.train, got " + name);
    }
  }
  for (const ConfigChange& change : changes) {
    if (change.changes_run && !allows_change(config, change.key)) {
      throw ConfigError(holder + " holds another run (" + change.text() +
                        "); choose another job.run_dir or remove that folder, or allow it with "
                        "checkpoint.allow_changes=[" +
                        change.key + "]");
    }
  }
}

}  // namespace narrowgauge::trainer

#pragma once

#include <filesystem>
#include <string>
#include <utility>

#include "trainer/config.h"

namespace narrowgauge::trainer {

// The folder of one run (its files are listed in README.md). While an object lives, no other
// process can open the same run.
class RunDirectory {
 public:
  // Creates the folder, or takes up the run it holds. Throws ConfigError if the folder holds a run
  // of another model, tokenizer or data that checkpoint.allow_changes does not allow, and
  // std::runtime_error if another process trains in it.
  // Rank 0 alone opens; the other ranks use `attach`.
  static RunDirectory open(const TrainConfig& config);

  // The same paths without lock or checks.
  static RunDirectory attach(const TrainConfig& config);

  ~RunDirectory();
  RunDirectory(RunDirectory&& other) noexcept;
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;
  RunDirectory& operator=(RunDirectory&&) = delete;

  std::filesystem::path path() const { return path_; }
  std::filesystem::path config_file() const { return path_ / "config.yaml"; }
  // config.json of the model that the run began with, where model.initial_load_path names one: the
  // run outlives that directory.
  std::filesystem::path base_config_file() const { return path_ / "base_config.json"; }
  // The template that conversations were written with, where data.chat_template names one.
  std::filesystem::path chat_template_file() const { return path_ / "chat_template.jinja"; }
  std::filesystem::path metrics_file() const { return path_ / "metrics.jsonl"; }
  std::filesystem::path samples_file() const { return path_ / "samples.jsonl"; }
  std::filesystem::path tensorboard() const { return path_ / "tensorboard"; }
  std::filesystem::path checkpoints() const { return path_ / "checkpoints"; }
  std::filesystem::path tokenizer() const { return path_ / "tokenizer"; }
  std::filesystem::path huggingface() const { return path_ / "hf"; }
  // The last collectives of each rank, written when a run of several fails.
  std::filesystem::path flight_record() const { return path_ / "flight_record"; }

  // Replaces config.yaml by the resolved `config` and keeps base_config.json; called once the run
  // is known to start. Throws std::runtime_error if the disk is full, with the old files in place.
  void write_config(const TrainConfig& config) const;

 private:
  explicit RunDirectory(std::filesystem::path path) : path_(std::move(path)) {}

  std::filesystem::path path_;
  int lock_descriptor_ = -1;
};

}  // namespace narrowgauge::trainer

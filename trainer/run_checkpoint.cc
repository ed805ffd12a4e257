#include "trainer/run_checkpoint.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <chrono>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

#include "checkpoint/checkpoint_store.h"
#include "checkpoint/huggingface_names.h"
#include "checkpoint/latest_checkpoint.h"
#include "checkpoint/sharded_checkpoint.h"
#include "trainer/config_changes.h"
#include "trainer/stage_progress.h"

namespace narrowgauge::trainer {
namespace {

namespace fs = std::filesystem;

enum class Purpose { kSave, kLoad };

// Of rows that several ranks hold, each loads its copy, but only the first one saves them.
std::vector<checkpoint::ShardChunk> run_chunks(
    const std::vector<fsdp::ShardedParameter>& parameters, optim::Optimizer& optimizer,
    const NamedBuffers& buffers, Purpose purpose) {
  std::vector<checkpoint::ShardChunk> chunks;
  for (const fsdp::ShardedParameter& parameter : parameters) {
    chunks.push_back({"model." + parameter.fqn, parameter.local.detach(), parameter.global_sizes,
                      parameter.row_begin});
  }
  for (const optim::StateTensor& state : optimizer.state()) {
    const int64_t skip = purpose == Purpose::kSave ? state.num_shared_rows : 0;
    chunks.push_back(
        {"optimizer." + state.name,
         skip == 0 ? state.local : state.local.narrow(0, skip, state.local.size(0) - skip),
         state.global_sizes, state.row_begin + skip});
  }
  for (const auto& [name, tensor] : buffers) {
    chunks.push_back({name, tensor, tensor.sizes().vec(), 0});
  }
  return chunks;
}

bool is_bfloat16(const checkpoint::CheckpointManifest& manifest, const std::string& name) {
  const auto tensor = manifest.tensors.find(name);
  return tensor != manifest.tensors.end() && tensor->second.dtype == "BF16";
}

NamedBuffers buffers_in(const checkpoint::Checkpoint& saved, const NamedBuffers& buffers) {
  NamedBuffers present;
  for (const auto& buffer : buffers) {
    if (saved.manifest().tensors.contains(buffer.first)) {
      present.push_back(buffer);
    }
  }
  return present;
}

// A number that the order of the data hangs on.
void check_unchanged(const std::string& key, const std::string& unit, int64_t before, int64_t now,
                     const TrainConfig& config, std::vector<std::string>& notes) {
  if (before == now) {
    return;
  }
  if (!allows_change(config, key)) {
    throw ConfigError(key + ": the run has had " + std::to_string(before) + " " + unit +
                      " so far, got " + std::to_string(now) +
                      "; restore it, or start another job.run_dir from this run's hf/ with "
                      "model.initial_load_path, or allow it with checkpoint.allow_changes=[" +
                      key + "]");
  }
  notes.push_back(key + ": " + std::to_string(before) + " -> " + std::to_string(now) + " " + unit +
                  "; some windows of data come again and others are left out");
}

// Throws for what is not allowed.
std::vector<std::string> note_changes(const nlohmann::json& saved, const fs::path& folder,
                                      const TrainConfig& config) {
  const auto before = saved.value("config", std::map<std::string, std::string>());
  const auto changes = config_changes(before, config);
  check_changes(changes, config, folder.string());
  std::vector<std::string> notes;
  for (const ConfigChange& change : changes) {
    const bool moves_rate =
        change.key == "training.steps" && config.lr_scheduler.decay_type != "constant";
    notes.push_back(change.text() +
                    (moves_rate ? "; the learning rate follows the new length from here on" : ""));
  }
  return notes;
}

}  // namespace

RunSnapshot snapshot_run(const RunState& state, const TrainConfig& config,
                         const std::vector<fsdp::ShardedParameter>& parameters,
                         optim::Optimizer& optimizer, const NamedBuffers& buffers) {
  const nlohmann::ordered_json json = {{"step", state.step},
                                       {"tokens_seen", state.tokens_seen},
                                       {"global_batch_size", state.global_batch_size},
                                       {"train_tokens", state.train_tokens},
                                       {"optimizer_steps", optimizer.step_count()},
                                       {"config", config_texts(config)}};
  return {state.step, run_chunks(parameters, optimizer, buffers, Purpose::kSave), json.dump()};
}

void remove_leftovers(const fs::path& store) {
  try {
    checkpoint::remove_leftovers(store);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cannot delete what a killed save left: %s\n", error.what());
  }
}

std::optional<fs::path> find_checkpoint(const fs::path& store, int64_t load_step,
                                        comm::Communicator& world) {
  if (load_step >= 0) {
    const fs::path folder = store / checkpoint::step_name(load_step);
    if (!fs::exists(folder)) {
      throw std::runtime_error("checkpoint.load_step " + std::to_string(load_step) +
                               ": there is no " + folder.string());
    }
    return folder;
  }
  std::optional<StageProgress> progress;  // of a reading that takes long
  const auto began = std::chrono::steady_clock::now();
  const checkpoint::LatestCheckpoint latest = checkpoint::find_latest_checkpoint(
      store, world, [&](const std::string& name, double fraction) {
        const bool is_long = std::chrono::steady_clock::now() - began > std::chrono::seconds(2);
        if (is_long && world.rank() == 0) {
          (progress ? *progress : progress.emplace()).update("checking " + name, fraction);
        }
      });
  progress.reset();
  if (world.rank() == 0) {
    for (const std::string& warning : latest.warnings) {
      std::fprintf(stderr, "%s\n", warning.c_str());
    }
    if (latest.folder && !latest.warnings.empty()) {
      std::fprintf(stderr, "going on from %s instead\n", latest.folder->c_str());
    }
  }
  if (!latest.folder && !latest.warnings.empty()) {
    throw std::runtime_error("every checkpoint in " + store.string() +
                             " is damaged; remove the folder to start the run anew");
  }
  return latest.folder;
}

RunState load_run(const fs::path& folder, const RunState& expected, const TrainConfig& config,
                  const std::vector<fsdp::ShardedParameter>& parameters,
                  optim::Optimizer& optimizer, const NamedBuffers& buffers,
                  std::vector<std::string>& notes) {
  const at::NoGradGuard no_grad;
  const auto saved = checkpoint::Checkpoint::open(folder);
  const auto json = nlohmann::json::parse(saved.manifest().state_json);
  const RunState state = {json.at("step").get<int64_t>(), json.at("tokens_seen").get<int64_t>(),
                          json.at("global_batch_size").get<int64_t>(),
                          json.at("train_tokens").get<int64_t>()};
  for (std::string& note : note_changes(json, folder, config)) {
    notes.push_back(std::move(note));
  }
  check_unchanged("training.global_batch_size", "windows a step", state.global_batch_size,
                  expected.global_batch_size, config, notes);
  check_unchanged("data.train", "tokens", state.train_tokens, expected.train_tokens, config, notes);
  saved.load(run_chunks(parameters, optimizer, buffers_in(saved, buffers), Purpose::kLoad));
  optimizer.set_step_count(json.at("optimizer_steps").get<int64_t>());
  return {state.step, state.tokens_seen, expected.global_batch_size, expected.train_tokens};
}

std::function<at::Tensor(const std::string& fqn)> full_parameter_reader(
    const fs::path& folder, const nn::TransformerConfig& config) {
  auto saved = std::make_shared<checkpoint::Checkpoint>(checkpoint::Checkpoint::open(folder));
  std::map<std::string, std::vector<int64_t>> sizes;
  for (checkpoint::ParameterSpec& spec : checkpoint::parameter_specs(config)) {
    sizes[spec.name] = std::move(spec.sizes);
  }
  return [saved, sizes](const std::string& fqn) {
    const std::string name = "model." + fqn;
    const auto& tensors = saved->manifest().tensors;
    const auto expected = sizes.find(fqn);
    const auto found = tensors.find(name);
    TORCH_CHECK(expected != sizes.end() || found != tensors.end(), "the checkpoint has no '", name,
                "'");
    // What is no parameter of the model, an adapter, has the sizes it was saved with.
    const auto& whole_sizes = expected != sizes.end() ? expected->second : found->second.sizes;
    const at::Tensor whole =
        at::empty(whole_sizes, is_bfloat16(saved->manifest(), name) ? at::kBFloat16 : at::kFloat);
    const checkpoint::ShardChunk destination{name, whole, whole_sizes, 0};
    saved->load({&destination, 1});
    return whole;
  };
}

}  // namespace narrowgauge::trainer

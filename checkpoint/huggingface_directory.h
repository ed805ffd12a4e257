#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/huggingface_config.h"
#include "checkpoint/huggingface_names.h"
#include "checkpoint/model_directory.h"
#include "checkpoint/safetensors.h"

namespace narrowgauge::checkpoint {

// A model directory as transformers writes it: config.json and either model.safetensors or
// model.safetensors.index.json with its shards. Parameters are asked for by our names (see
// huggingface_names.h) and by rows, so a rank reads only what it keeps.
//
// open() reads headers only, and throws std::runtime_error for whatever is missing or damaged.
// Const methods are thread-safe.
class HuggingFaceDirectory {
 public:
  static HuggingFaceDirectory open(const std::filesystem::path& directory);

  const HuggingFaceConfig& config() const { return config_; }

  // Checks that every parameter of config().transformer is there with its shape and a floating
  // dtype. Throws std::runtime_error listing all that are not. Returns the names of tensors that
  // the model has no use for, sorted; a tied lm_head and rotary_emb.inv_freq, which follow from the
  // rest, are not among them.
  std::vector<std::string> validate() const;

  // Rows [row_begin, row_end) of our parameter `name`, as `dtype` or as stored; a new tensor or a
  // view on the mapped file. Throws std::invalid_argument for a name or rows the model does not
  // have, std::runtime_error where validate() would.
  at::Tensor rows(const std::string& name, int64_t row_begin, int64_t row_end,
                  std::optional<at::ScalarType> dtype = at::kFloat) const;

  at::Tensor parameter(const std::string& name,
                       std::optional<at::ScalarType> dtype = at::kFloat) const;

 private:
  void open_single(const std::filesystem::path& file);
  void open_sharded(const std::filesystem::path& index);
  // What keeps `piece` from being read, or nothing.
  std::optional<std::string> problem_with(const HuggingFacePiece& piece) const;

  std::filesystem::path directory_;
  HuggingFaceConfig config_;
  std::map<std::string, ParameterSpec> parameters_;  // by our name
  std::map<std::string, SafetensorsFile> file_of_;   // by Hugging Face name
};

struct HuggingFaceWriteOptions {
  at::ScalarType dtype = at::kBFloat16;       // of all weights: kFloat, kBFloat16 or kHalf
  int64_t max_shard_bytes = 5'000'000'000;    // a larger tensor gets a file of its own
  std::vector<CopiedFile> copied_files = {};  // what the tokenizer needs
};

// Throws std::runtime_error unless `directory` is absent, empty or an earlier export: what
// write_huggingface_directory would refuse, known before a long run.
void check_replaceable(const std::filesystem::path& directory,
                       const HuggingFaceWriteOptions& options);

// Writes `directory` so that transformers loads it: config.json, generation_config.json, the
// tokenizer's files and weights. See write_model_directory for how it appears.
//
// `full_parameter` is called once for each name of parameter_specs(config.transformer), in that
// order (it may be a collective: the other ranks make the same calls), and returns the whole
// tensor, on any device. config.dtype is overridden by options.dtype.
// Throws std::runtime_error (disk, existing directory) or c10::Error (shapes).
void write_huggingface_directory(
    const std::filesystem::path& directory, const HuggingFaceConfig& config,
    const std::function<at::Tensor(const std::string& name)>& full_parameter,
    const HuggingFaceWriteOptions& options = {});

}  // namespace narrowgauge::checkpoint

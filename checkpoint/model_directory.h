#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"

namespace narrowgauge::checkpoint {

// A file that goes into the directory under another name or its own.
struct CopiedFile {
  std::filesystem::path source;
  std::string name;  // in the directory
};

// What a model directory is written from: model.safetensors, or model.safetensors.index.json and
// its shards, and smaller files.
struct ModelDirectoryContents {
  std::map<std::string, std::string> texts;  // by file name
  std::vector<CopiedFile> copied_files;      // what the tokenizer needs
  std::vector<SafetensorsSpec> tensors;      // in the order in which they come
  std::map<std::string, std::string> metadata = {{"format", "pt"}};  // of every shard
  int64_t max_shard_bytes = 5'000'000'000;  // a larger tensor gets a file of its own
};

// Takes the announced tensors, in their order.
using TensorSink = std::function<void(const std::string& name, const at::Tensor& tensor)>;

// Throws std::runtime_error unless `directory` is absent, empty, or holds nothing but what a model
// directory consists of and the `copied_files`: known before a long run.
void check_replaceable(const std::filesystem::path& directory,
                       const std::vector<CopiedFile>& copied_files);

// Writes DIRECTORY.tmp, small files first and weights last, and renames it. A directory already
// there is replaced in one step; one that check_replaceable refuses is left alone, so that nothing
// else is ever deleted.
//
// `produce` gives the tensors to its sink. `check` sees the complete temporary directory before
// the rename; what it throws keeps the directory from appearing.
// Throws std::runtime_error (disk, existing directory) or c10::Error (tensors not as announced).
void write_model_directory(
    const std::filesystem::path& directory, const ModelDirectoryContents& contents,
    const std::function<void(const TensorSink&)>& produce,
    const std::function<void(const std::filesystem::path&)>& check = nullptr);

}  // namespace narrowgauge::checkpoint

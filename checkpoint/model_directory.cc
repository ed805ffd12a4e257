#include "checkpoint/model_directory.h"

#include <algorithm>
#include <memory>
#include <set>
#include <stdexcept>

#include "checkpoint/durable_file.h"
#include "checkpoint/strict_json.h"

namespace narrowgauge::checkpoint {
namespace {

namespace fs = std::filesystem;

using Shards = std::vector<std::vector<SafetensorsSpec>>;

// What a model directory consists of; one with anything else in it is not replaced.
bool is_model_file(const std::string& name, const std::vector<CopiedFile>& copied_files) {
  static const std::set<std::string> kKnown = {
      "config.json",
      "generation_config.json",
      "model.safetensors.index.json",
      "tokenizer.json",
      "tokenizer_config.json",
      "special_tokens_map.json",
      "tokenizer.model",
      "vocab.json",
      "merges.txt",
      "added_tokens.json",
      "chat_template.jinja",
      "encoder.json",
      "vocab.bpe",
  };
  if (kKnown.count(name) > 0 || (name.starts_with("model") && name.ends_with(".safetensors"))) {
    return true;
  }
  return std::any_of(copied_files.begin(), copied_files.end(),
                     [&](const CopiedFile& file) { return file.name == name; });
}

int64_t tensor_bytes(const SafetensorsSpec& spec) {
  return c10::multiply_integers(spec.sizes) * static_cast<int64_t>(c10::elementSize(spec.dtype));
}

// Consecutive tensors, at most max_bytes a shard unless a single one is larger.
Shards plan_shards(const std::vector<SafetensorsSpec>& tensors, int64_t max_bytes) {
  TORCH_CHECK(max_bytes > 0, "expected max_shard_bytes above 0, got ", max_bytes);
  Shards shards(1);
  int64_t shard_bytes = 0;
  for (const SafetensorsSpec& spec : tensors) {
    const int64_t bytes = tensor_bytes(spec);
    if (!shards.back().empty() && shard_bytes + bytes > max_bytes) {
      shards.emplace_back();
      shard_bytes = 0;
    }
    shard_bytes += bytes;
    shards.back().push_back(spec);
  }
  return shards;
}

std::string shard_name(size_t shard, size_t num_shards) {
  if (num_shards == 1) {
    return "model.safetensors";
  }
  const auto five = [](size_t n) {
    const std::string digits = std::to_string(n);
    return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
  };
  return "model-" + five(shard + 1) + "-of-" + five(num_shards) + ".safetensors";
}

std::string index_json(const Shards& shards) {
  nlohmann::json root;
  int64_t total_size = 0;
  int64_t total_parameters = 0;
  for (size_t shard = 0; shard < shards.size(); ++shard) {
    for (const SafetensorsSpec& spec : shards[shard]) {
      total_parameters += c10::multiply_integers(spec.sizes);
      total_size += tensor_bytes(spec);
      root["weight_map"][spec.name] = shard_name(shard, shards.size());
    }
  }
  root["metadata"] = {{"total_size", total_size}, {"total_parameters", total_parameters}};
  return root.dump(2) + "\n";
}

void write_small_files(const fs::path& directory, const ModelDirectoryContents& contents,
                       const Shards& shards) {
  for (const auto& [name, text] : contents.texts) {
    write_durable_file(directory / name, text);
  }
  for (const CopiedFile& file : contents.copied_files) {
    write_durable_file(directory / file.name, read_file(file.source));
  }
  if (shards.size() > 1) {
    write_durable_file(directory / "model.safetensors.index.json", index_json(shards));
  }
}

void write_weights(const fs::path& directory, const ModelDirectoryContents& contents,
                   const Shards& shards, const std::function<void(const TensorSink&)>& produce) {
  const auto open_shard = [&](size_t shard) {
    return std::make_unique<SafetensorsWriter>(directory / shard_name(shard, shards.size()),
                                               shards[shard], contents.metadata);
  };
  size_t shard = 0;
  size_t written = 0;  // tensors of the current shard
  auto writer = open_shard(0);
  produce([&](const std::string& name, const at::Tensor& tensor) {
    if (written == shards[shard].size()) {
      TORCH_CHECK(shard + 1 < shards.size(), "tensor '", name, "' was not announced");
      writer->commit();
      writer = open_shard(++shard);
      written = 0;
    }
    writer->write(name, tensor);
    ++written;
  });
  TORCH_CHECK(shard + 1 == shards.size(), "expected ", contents.tensors.size(),
              " tensors to be written, the last shards got none");
  writer->commit();
}

}  // namespace

void check_replaceable(const fs::path& directory, const std::vector<CopiedFile>& copied_files) {
  if (!fs::exists(directory)) {
    return;
  }
  if (!fs::is_directory(directory)) {
    throw std::runtime_error(directory.string() + ": expected a directory to write, got a file");
  }
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    if (!is_model_file(name, copied_files)) {
      throw std::runtime_error(directory.string() +
                               ": expected an empty directory or an earlier "
                               "export to replace, found '" +
                               name + "'; choose another directory");
    }
  }
}

void write_model_directory(const fs::path& directory, const ModelDirectoryContents& contents,
                           const std::function<void(const TensorSink&)>& produce,
                           const std::function<void(const fs::path&)>& check) {
  const fs::path target = directory.has_filename() ? directory : directory.parent_path();
  check_replaceable(target, contents.copied_files);
  const Shards shards = plan_shards(contents.tensors, contents.max_shard_bytes);
  const fs::path temporary = fs::path(target).concat(".tmp");
  fs::remove_all(temporary);  // of an export that was killed
  fs::create_directories(temporary);
  try {
    write_small_files(temporary, contents, shards);
    write_weights(temporary, contents, shards, produce);
    if (check) {
      check(temporary);
    }
    replace_directory(temporary, target);
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw;
  }
}

}  // namespace narrowgauge::checkpoint

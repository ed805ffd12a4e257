#include "checkpoint/huggingface_directory.h"

#include <ATen/ops/cat.h>

#include <algorithm>
#include <memory>
#include <set>
#include <stdexcept>

#include "checkpoint/strict_json.h"

namespace narrowgauge::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxIndexBytes = 256 << 20;
constexpr size_t kMaxListed = 20;  // of problems in one error

bool ends_with(const std::string& text, const std::string& suffix) {
  return text.size() >= suffix.size() &&
         text.compare(text.size() - suffix.size(), suffix.size(), suffix) == 0;
}

std::string shape_text(const std::vector<int64_t>& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(sizes[i]);
  }
  return text + "]";
}

// FP8 without its scale is not a weight.
bool is_weight_dtype(at::ScalarType dtype) {
  return dtype == at::kDouble || dtype == at::kFloat || dtype == at::kHalf ||
         dtype == at::kBFloat16;
}

[[noreturn]] void fail_no_weights(const fs::path& directory) {
  std::string found;
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    if (ends_with(name, ".bin") || ends_with(name, ".pt") || ends_with(name, ".pth")) {
      found = name;
    }
  }
  throw std::runtime_error(
      directory.string() + ": expected model.safetensors or model.safetensors.index.json, found " +
      (found.empty() ? "neither"
                     : "only " + found + "; convert it with transformers' save_pretrained"));
}

}  // namespace

HuggingFaceDirectory HuggingFaceDirectory::open(const fs::path& directory) {
  if (!fs::is_directory(directory)) {
    throw std::runtime_error(directory.string() + ": expected a Hugging Face model directory, " +
                             (fs::exists(directory) ? "got a file" : "there is nothing"));
  }
  HuggingFaceDirectory result;
  result.directory_ = directory;
  result.config_ = read_huggingface_config(directory);
  for (ParameterSpec& spec : parameter_specs(result.config_.transformer)) {
    const std::string name = spec.name;
    result.parameters_.emplace(name, std::move(spec));
  }
  if (fs::exists(directory / "model.safetensors")) {
    result.open_single(directory / "model.safetensors");
  } else if (fs::exists(directory / "model.safetensors.index.json")) {
    result.open_sharded(directory / "model.safetensors.index.json");
  } else {
    fail_no_weights(directory);
  }
  return result;
}

void HuggingFaceDirectory::open_single(const fs::path& file) {
  const SafetensorsFile weights = SafetensorsFile::open(file);
  for (const std::string& name : weights.names()) {
    file_of_.emplace(name, weights);
  }
}

void HuggingFaceDirectory::open_sharded(const fs::path& index) {
  const std::string source = index.string();
  const nlohmann::json root = parse_strict_json(read_file(index, kMaxIndexBytes), source);
  const auto weight_map = root.find("weight_map");
  if (weight_map == root.end() || !weight_map->is_object()) {
    throw std::runtime_error(source + ": expected an object 'weight_map'");
  }
  std::map<std::string, SafetensorsFile> shards;
  for (const auto& [name, value] : weight_map->items()) {
    const std::string shard = json_value<std::string>(*weight_map, name, source);
    // A name with a folder in it would read outside the directory.
    if (fs::path(shard).filename() != shard || shard == ".." || shard == ".") {
      throw std::runtime_error(source + ": expected the name of a file beside it for '" + name +
                               "', got '" + shard + "'");
    }
    if (shards.count(shard) == 0) {
      if (!fs::exists(directory_ / shard)) {
        throw std::runtime_error(source + ": shard " + shard +
                                 " is missing; copy it into the directory");
      }
      shards.emplace(shard, SafetensorsFile::open(directory_ / shard));
    }
    if (!shards.at(shard).contains(name)) {
      throw std::runtime_error(source + ": tensor '" + name + "' should be in " + shard +
                               " and is not; index and shards do not belong together");
    }
    file_of_.emplace(name, shards.at(shard));
  }
}

std::optional<std::string> HuggingFaceDirectory::problem_with(const HuggingFacePiece& piece) const {
  const auto found = file_of_.find(piece.name);
  if (found == file_of_.end()) {
    return "'" + piece.name + "' is missing";
  }
  const SafetensorsFile& file = found->second;
  if (file.sizes(piece.name) != piece.sizes) {
    return "'" + piece.name + "': expected shape " + shape_text(piece.sizes) + ", got " +
           shape_text(file.sizes(piece.name));
  }
  if (!is_weight_dtype(file.dtype(piece.name))) {
    return "'" + piece.name + "': expected F32, BF16, F16 or F64, got " +
           safetensors_dtype_name(file.dtype(piece.name));
  }
  return std::nullopt;
}

std::vector<std::string> HuggingFaceDirectory::validate() const {
  std::set<std::string> used;
  std::vector<std::string> problems;
  for (const auto& [name, spec] : parameters_) {
    for (const HuggingFacePiece& piece : huggingface_pieces(config_.transformer, spec)) {
      used.insert(piece.name);
      if (const auto problem = problem_with(piece)) {
        problems.push_back(*problem);
      }
    }
  }
  if (!problems.empty()) {
    std::string text = directory_.string() + ": config.json and weights do not belong together (" +
                       std::to_string(problems.size()) + " tensors):";
    for (size_t i = 0; i < std::min(problems.size(), kMaxListed); ++i) {
      text += "\n  " + problems[i];
    }
    throw std::runtime_error(text + (problems.size() > kMaxListed ? "\n  ..." : ""));
  }
  std::vector<std::string> extra;
  for (const auto& [name, file] : file_of_) {
    const bool follows = ends_with(name, "rotary_emb.inv_freq") ||
                         (name == "lm_head.weight" && config_.transformer.tie_word_embeddings);
    if (used.count(name) == 0 && !follows) {
      extra.push_back(name);
    }
  }
  return extra;
}

at::Tensor HuggingFaceDirectory::rows(const std::string& name, int64_t row_begin, int64_t row_end,
                                      std::optional<at::ScalarType> dtype) const {
  const auto found = parameters_.find(name);
  if (found == parameters_.end()) {
    throw std::invalid_argument(directory_.string() +
                                ": expected the name of a parameter of this " +
                                config_.transformer.architecture + " model, got '" + name + "'");
  }
  const ParameterSpec& spec = found->second;
  if (row_begin < 0 || row_begin > row_end || row_end > spec.sizes[0]) {
    throw std::invalid_argument(name + ": expected rows within [0, " +
                                std::to_string(spec.sizes[0]) + "], got [" +
                                std::to_string(row_begin) + ", " + std::to_string(row_end) + ")");
  }
  std::vector<at::Tensor> parts;  // those of the rows that each piece holds, maybe none
  for (const HuggingFacePiece& piece : huggingface_pieces(config_.transformer, spec)) {
    if (const auto problem = problem_with(piece)) {
      throw std::runtime_error(directory_.string() + ": tensor " + *problem);
    }
    const int64_t begin = std::clamp(row_begin, piece.row_begin, piece.row_end);
    const int64_t end = std::clamp(row_end, piece.row_begin, piece.row_end);
    parts.push_back(
        file_of_.at(piece.name).rows(piece.name, begin - piece.row_begin, end - piece.row_begin));
  }
  const auto full = std::find_if(parts.begin(), parts.end(), [&](const at::Tensor& part) {
    return part.size(0) == row_end - row_begin;
  });
  const at::Tensor rows = full != parts.end() ? *full : at::cat(parts);
  return dtype ? rows.to(*dtype) : rows;
}

at::Tensor HuggingFaceDirectory::parameter(const std::string& name,
                                           std::optional<at::ScalarType> dtype) const {
  const auto found = parameters_.find(name);
  return rows(name, 0, found == parameters_.end() ? 0 : found->second.sizes[0], dtype);
}

namespace {

// What an export writes; a directory with anything else in it is not replaced.
bool is_exported_name(const std::string& name, const HuggingFaceWriteOptions& options) {
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
  if (kKnown.count(name) > 0 || (name.rfind("model", 0) == 0 && ends_with(name, ".safetensors"))) {
    return true;
  }
  return std::any_of(options.copied_files.begin(), options.copied_files.end(),
                     [&](const CopiedFile& file) { return file.name == name; });
}

}  // namespace

void check_replaceable(const fs::path& directory, const HuggingFaceWriteOptions& options) {
  if (!fs::exists(directory)) {
    return;
  }
  if (!fs::is_directory(directory)) {
    throw std::runtime_error(directory.string() + ": expected a directory to write, got a file");
  }
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    if (!is_exported_name(name, options)) {
      throw std::runtime_error(directory.string() +
                               ": expected an empty directory or an earlier "
                               "export to replace, found '" +
                               name + "'; choose another directory");
    }
  }
}

namespace {

std::string dtype_name(at::ScalarType dtype) {
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf,
              "expected float32, bfloat16 or float16 for an export, got ", dtype);
  return dtype == at::kFloat ? "float32" : dtype == at::kHalf ? "float16" : "bfloat16";
}

// Consecutive tensors, at most max_bytes a shard unless a single one is larger.
std::vector<std::vector<SafetensorsSpec>> plan_shards(const nn::TransformerConfig& config,
                                                      at::ScalarType dtype, int64_t max_bytes) {
  TORCH_CHECK(max_bytes > 0, "expected max_shard_bytes above 0, got ", max_bytes);
  std::vector<std::vector<SafetensorsSpec>> shards(1);
  int64_t shard_bytes = 0;
  for (const ParameterSpec& spec : parameter_specs(config)) {
    for (HuggingFacePiece& piece : huggingface_pieces(config, spec)) {
      const int64_t bytes =
          c10::multiply_integers(piece.sizes) * static_cast<int64_t>(c10::elementSize(dtype));
      if (!shards.back().empty() && shard_bytes + bytes > max_bytes) {
        shards.emplace_back();
        shard_bytes = 0;
      }
      shard_bytes += bytes;
      shards.back().push_back({std::move(piece.name), dtype, std::move(piece.sizes)});
    }
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

std::string index_json(const std::vector<std::vector<SafetensorsSpec>>& shards) {
  nlohmann::json root;
  int64_t total_size = 0;
  int64_t total_parameters = 0;
  for (size_t shard = 0; shard < shards.size(); ++shard) {
    for (const SafetensorsSpec& spec : shards[shard]) {
      const int64_t numel = c10::multiply_integers(spec.sizes);
      total_parameters += numel;
      total_size += numel * static_cast<int64_t>(c10::elementSize(spec.dtype));
      root["weight_map"][spec.name] = shard_name(shard, shards.size());
    }
  }
  root["metadata"] = {{"total_size", total_size}, {"total_parameters", total_parameters}};
  return root.dump(2) + "\n";
}

void write_small_files(const fs::path& directory, HuggingFaceConfig config,
                       const HuggingFaceWriteOptions& options) {
  config.dtype = dtype_name(options.dtype);
  write_durable_file(directory / "config.json", huggingface_config_json(config));
  write_durable_file(directory / "generation_config.json",
                     huggingface_generation_config_json(config));
  for (const CopiedFile& file : options.copied_files) {
    write_durable_file(directory / file.name, read_file(file.source));
  }
}

void write_weights(const fs::path& directory, const nn::TransformerConfig& config,
                   const std::function<at::Tensor(const std::string&)>& full_parameter,
                   const std::vector<std::vector<SafetensorsSpec>>& shards) {
  const std::map<std::string, std::string> metadata = {{"format", "pt"}};
  const auto open_shard = [&](size_t shard) {
    return std::make_unique<SafetensorsWriter>(directory / shard_name(shard, shards.size()),
                                               shards[shard], metadata);
  };
  size_t shard = 0;
  size_t written = 0;  // tensors of the current shard; a parameter may straddle two
  auto writer = open_shard(0);
  for (const ParameterSpec& spec : parameter_specs(config)) {
    const at::Tensor parameter = full_parameter(spec.name).detach();
    TORCH_CHECK(parameter.sizes() == at::IntArrayRef(spec.sizes), "parameter '", spec.name,
                "': expected shape ", at::IntArrayRef(spec.sizes), ", got ", parameter.sizes());
    for (const HuggingFacePiece& piece : huggingface_pieces(config, spec)) {
      if (written == shards[shard].size()) {
        writer->commit();
        writer = open_shard(++shard);
        written = 0;
      }
      const at::Tensor rows = parameter.slice(0, piece.row_begin, piece.row_end);
      writer->write(piece.name, rows.to(shards[shard][written++].dtype));
    }
  }
  writer->commit();
}

}  // namespace

void write_huggingface_directory(
    const fs::path& directory, const HuggingFaceConfig& config,
    const std::function<at::Tensor(const std::string& name)>& full_parameter,
    const HuggingFaceWriteOptions& options) {
  const fs::path target = directory.has_filename() ? directory : directory.parent_path();
  check_replaceable(target, options);
  const auto shards = plan_shards(config.transformer, options.dtype, options.max_shard_bytes);
  const fs::path temporary = fs::path(target).concat(".tmp");
  fs::remove_all(temporary);  // of an export that was killed
  fs::create_directories(temporary);
  try {
    write_small_files(temporary, config, options);
    if (shards.size() > 1) {
      write_durable_file(temporary / "model.safetensors.index.json", index_json(shards));
    }
    write_weights(temporary, config.transformer, full_parameter, shards);
    replace_directory(temporary, target);
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw;
  }
}

}  // namespace narrowgauge::checkpoint

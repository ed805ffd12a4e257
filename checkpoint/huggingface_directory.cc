#include "checkpoint/huggingface_directory.h"

#include <ATen/ops/cat.h>

#include <algorithm>
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

void check_replaceable(const fs::path& directory, const HuggingFaceWriteOptions& options) {
  check_replaceable(directory, options.copied_files);
}

namespace {

std::string dtype_name(at::ScalarType dtype) {
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf,
              "expected float32, bfloat16 or float16 for an export, got ", dtype);
  return dtype == at::kFloat ? "float32" : dtype == at::kHalf ? "float16" : "bfloat16";
}

}  // namespace

void write_huggingface_directory(
    const fs::path& directory, const HuggingFaceConfig& config,
    const std::function<at::Tensor(const std::string& name)>& full_parameter,
    const HuggingFaceWriteOptions& options) {
  HuggingFaceConfig described = config;
  described.dtype = dtype_name(options.dtype);
  ModelDirectoryContents contents;
  contents.texts = {
      {"config.json", huggingface_config_json(described)},
      {"generation_config.json", huggingface_generation_config_json(described)},
  };
  contents.copied_files = options.copied_files;
  contents.max_shard_bytes = options.max_shard_bytes;
  const std::vector<ParameterSpec> parameters = parameter_specs(config.transformer);
  for (const ParameterSpec& parameter : parameters) {
    for (HuggingFacePiece& piece : huggingface_pieces(config.transformer, parameter)) {
      contents.tensors.push_back({std::move(piece.name), options.dtype, std::move(piece.sizes)});
    }
  }
  write_model_directory(directory, contents, [&](const TensorSink& sink) {
    for (const ParameterSpec& spec : parameters) {
      const at::Tensor parameter = full_parameter(spec.name).detach();
      TORCH_CHECK(parameter.sizes() == at::IntArrayRef(spec.sizes), "parameter '", spec.name,
                  "': expected shape ", at::IntArrayRef(spec.sizes), ", got ", parameter.sizes());
      for (const HuggingFacePiece& piece : huggingface_pieces(config.transformer, spec)) {
        sink(piece.name, parameter.slice(0, piece.row_begin, piece.row_end).to(options.dtype));
      }
    }
  });
}

}  // namespace narrowgauge::checkpoint

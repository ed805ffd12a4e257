// manifest.json: {"format": "narrowgauge-checkpoint", "version": 2, "step", "world_size",
//   "files": {FILE: {"bytes", "header_xxh3"}},
//   "tensors": {NAME: {"dtype", "shape", "chunks": [{"file", "name", "rows": [b, e], "xxh3"}]}},
//   "state": {...}, "xxh3": hash of the rest}
// The hash is taken over the compact text of the object without the "xxh3" key: nlohmann sorts keys
// and prints doubles so that they read back equal, so that text depends on the content alone.
#include "checkpoint/checkpoint_manifest.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <stdexcept>

#include "checkpoint/safetensors_header.h"
#include "checkpoint/strict_json.h"
#include "checkpoint/xxh3.h"

namespace narrowgauge::checkpoint {
namespace {

using nlohmann::json;

constexpr const char* kFormat = "narrowgauge-checkpoint";
constexpr int64_t kVersion = 2;

uint64_t from_hex(const std::string& text, const std::string& source) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (error != std::errc() || end != text.data() + text.size() || text.size() != 16) {
    throw std::runtime_error(source + ": expected 16 hexadecimal digits, got '" + text + "'");
  }
  return value;
}

std::string hash_of(const json& root) {
  const std::string text = root.dump();
  return xxh3_text(xxh3(text.data(), text.size()));
}

json to_json(const ManifestTensor& tensor) {
  json chunks = json::array();
  for (const ManifestChunk& chunk : tensor.chunks) {
    chunks.push_back({{"file", chunk.file},
                      {"name", chunk.name},
                      {"rows", {chunk.row_begin, chunk.row_end}},
                      {"xxh3", xxh3_text(chunk.xxh3)}});
  }
  return {{"dtype", tensor.dtype}, {"shape", tensor.sizes}, {"chunks", std::move(chunks)}};
}

// The checksum has already matched, so a wrong type here is another writer's: nlohmann's own errors
// say enough.
ManifestTensor tensor_from_json(const json& value, const std::string& source) {
  ManifestTensor tensor;
  tensor.dtype = json_value<std::string>(value, "dtype", source);
  tensor.sizes = value.at("shape").get<std::vector<int64_t>>();
  if (!safetensors_element_size(tensor.dtype)) {
    throw std::runtime_error(source + ": unknown dtype '" + tensor.dtype + "'");
  }
  for (const json& chunk : value.at("chunks")) {
    const auto [row_begin, row_end] = chunk.at("rows").get<std::pair<int64_t, int64_t>>();
    tensor.chunks.push_back({json_value<std::string>(chunk, "file", source),
                             json_value<std::string>(chunk, "name", source), row_begin, row_end,
                             from_hex(json_value<std::string>(chunk, "xxh3", source), source)});
  }
  return tensor;
}

void check_tensor(ManifestTensor& tensor, const std::string& where) {
  std::sort(tensor.chunks.begin(), tensor.chunks.end(), [](const auto& a, const auto& b) {
    return std::pair(a.row_begin, a.row_end) < std::pair(b.row_begin, b.row_end);
  });
  int64_t row = 0;
  for (const ManifestChunk& chunk : tensor.chunks) {
    if (chunk.row_begin != row || chunk.row_end < row) {
      throw std::runtime_error(where + ": expected a chunk from row " + std::to_string(row) +
                               ", got rows [" + std::to_string(chunk.row_begin) + ", " +
                               std::to_string(chunk.row_end) + ")" +
                               (chunk.row_begin < row ? "; chunks overlap"
                                                      : "; no rank holds the "
                                                        "rows between"));
    }
    if (std::filesystem::path(chunk.file).filename() != chunk.file || chunk.file == "..") {
      throw std::runtime_error(where + ": expected the name of a file beside the manifest, got '" +
                               chunk.file + "'");
    }
    row = chunk.row_end;
  }
  if (row != num_rows(tensor.sizes)) {
    throw std::runtime_error(where + ": chunks cover " + std::to_string(row) + " of " +
                             std::to_string(num_rows(tensor.sizes)) + " rows");
  }
}

}  // namespace

int64_t num_rows(const std::vector<int64_t>& sizes) { return sizes.empty() ? 1 : sizes[0]; }

uint64_t size_bytes(const ManifestTensor& tensor, int64_t num_rows) {
  uint64_t bytes = safetensors_element_size(tensor.dtype).value() * static_cast<uint64_t>(num_rows);
  for (size_t dim = 1; dim < tensor.sizes.size(); ++dim) {
    bytes *= static_cast<uint64_t>(tensor.sizes[dim]);
  }
  return bytes;
}

uint64_t size_bytes(const CheckpointManifest& manifest) {
  uint64_t bytes = 0;
  for (const auto& [name, tensor] : manifest.tensors) {
    bytes += size_bytes(tensor, num_rows(tensor.sizes));
  }
  return bytes;
}

void check_manifest(CheckpointManifest& manifest, const std::string& source) {
  for (auto& [name, tensor] : manifest.tensors) {
    check_tensor(tensor, source + ": tensor '" + name + "'");
  }
}

std::string manifest_json(const CheckpointManifest& manifest) {
  json root = {{"format", kFormat},
               {"version", kVersion},
               {"step", manifest.step},
               {"world_size", manifest.world_size},
               {"files", json::object()},
               {"tensors", json::object()},
               {"state", parse_strict_json(manifest.state_json, "checkpoint state")}};
  if (!root["state"].is_object()) {
    throw std::runtime_error("checkpoint state: expected a JSON object, got " +
                             std::string(root["state"].type_name()));
  }
  for (const auto& [name, file] : manifest.files) {
    root["files"][name] = {{"bytes", file.size_bytes},
                           {"header_xxh3", xxh3_text(file.header_xxh3)}};
  }
  for (const auto& [name, tensor] : manifest.tensors) {
    root["tensors"][name] = to_json(tensor);
  }
  root["xxh3"] = hash_of(root);
  return root.dump(1) + "\n";
}

CheckpointManifest parse_manifest(std::string_view text, const std::string& source) {
  json root = parse_strict_json(text, source);
  // Spaces carry no meaning, but a changed one is a sign of a bad disk.
  if (root.dump(1) + "\n" != text) {
    throw std::runtime_error(source + ": differs in its white space from what was written; the " +
                             "manifest is damaged");
  }
  const std::string format = json_value<std::string>(root, "format", source);
  const int64_t version = json_value<int64_t>(root, "version", source);
  if (format != kFormat || version != kVersion) {
    throw std::runtime_error(source + ": expected " + kFormat + " version " +
                             std::to_string(kVersion) + ", got " + format + " version " +
                             std::to_string(version));
  }
  const std::string expected = json_value<std::string>(root, "xxh3", source);
  root.erase("xxh3");
  if (const std::string actual = hash_of(root); actual != expected) {
    throw std::runtime_error(source + ": expected xxh3 " + expected + ", got " + actual +
                             "; the manifest is damaged");
  }
  CheckpointManifest manifest;
  try {
    manifest.step = json_value<int64_t>(root, "step", source);
    manifest.world_size = json_value<int64_t>(root, "world_size", source);
    for (const auto& [name, value] : root.at("files").items()) {
      manifest.files[name] = {
          value.at("bytes").get<uint64_t>(),
          from_hex(json_value<std::string>(value, "header_xxh3", source), source)};
    }
    for (const auto& [name, value] : root.at("tensors").items()) {
      manifest.tensors[name] = tensor_from_json(value, source + ": tensor '" + name + "'");
    }
    manifest.state_json = root.at("state").dump();
  } catch (const json::exception& error) {
    throw std::runtime_error(source + ": not a manifest: " + error.what());
  }
  check_manifest(manifest, source);
  return manifest;
}

}  // namespace narrowgauge::checkpoint

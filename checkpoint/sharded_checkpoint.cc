#include "checkpoint/sharded_checkpoint.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "checkpoint/durable_file.h"
#include "checkpoint/rank_agreement.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/strict_json.h"

namespace narrowgauge::checkpoint {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

int64_t local_rows(const ShardChunk& chunk) {
  return chunk.global_sizes.empty() ? 1 : chunk.local.size(0);
}

void check_chunk(const ShardChunk& chunk) {
  TORCH_CHECK(chunk.local.defined(), "checkpoint: tensor '", chunk.name, "' is undefined");
  std::vector<int64_t> expected = chunk.global_sizes;
  if (!expected.empty() && chunk.local.dim() > 0) {
    expected[0] = chunk.local.size(0);
  }
  TORCH_CHECK(chunk.local.sizes() == at::IntArrayRef(expected), "checkpoint: tensor '", chunk.name,
              "': expected a local shape of rows of ", at::IntArrayRef(chunk.global_sizes),
              ", got ", chunk.local.sizes());
  TORCH_CHECK(
      chunk.row_begin >= 0 && chunk.row_begin + local_rows(chunk) <= num_rows(chunk.global_sizes),
      "checkpoint: tensor '", chunk.name, "': expected rows within [0, ",
      num_rows(chunk.global_sizes), "], got [", chunk.row_begin, ", ",
      chunk.row_begin + local_rows(chunk), ")");
}

// A chunk without rows says nothing, except of a tensor that has none.
bool is_padding(const ShardChunk& chunk) {
  return local_rows(chunk) == 0 && num_rows(chunk.global_sizes) > 0;
}

std::string rank_file_name(int rank) {
  char name[64];
  std::snprintf(name, sizeof(name), "rank-%05d.safetensors", rank);
  return name;
}

// What this rank could write: [[name, dtype, global shape, row_begin, row_end], ...].
std::string offer_json(std::span<const ShardChunk> chunks) {
  json offer = json::array();
  for (const ShardChunk& chunk : chunks) {
    check_chunk(chunk);
    if (!is_padding(chunk)) {
      offer.push_back({chunk.name, safetensors_dtype_name(chunk.local.scalar_type()),
                       chunk.global_sizes, chunk.row_begin, chunk.row_begin + local_rows(chunk)});
    }
  }
  return offer.dump();
}

// The manifest of what will be written, hashes still 0: each distinct range of rows goes to the
// lowest rank that offers it. The same on every rank.
CheckpointManifest plan_checkpoint(const std::vector<std::string>& offers, int64_t step) {
  CheckpointManifest manifest;
  manifest.step = step;
  manifest.world_size = static_cast<int64_t>(offers.size());
  std::set<std::tuple<std::string, int64_t, int64_t>> taken;
  std::set<std::pair<int, std::string>> names;  // per file
  for (int rank = 0; rank < static_cast<int>(offers.size()); ++rank) {
    for (const json& offer : json::parse(offers[rank])) {
      const auto [name, dtype, sizes, row_begin, row_end] =
          offer.get<std::tuple<std::string, std::string, std::vector<int64_t>, int64_t, int64_t>>();
      ManifestTensor& tensor =
          manifest.tensors.try_emplace(name, ManifestTensor{dtype, sizes, {}}).first->second;
      TORCH_CHECK(tensor.dtype == dtype && tensor.sizes == sizes, "checkpoint: tensor '", name,
                  "' is ", tensor.dtype, " ", at::IntArrayRef(tensor.sizes), " on a lower rank, ",
                  dtype, " ", at::IntArrayRef(sizes), " on rank ", rank);
      if (taken.emplace(name, row_begin, row_end).second) {
        const bool is_first = names.emplace(rank, name).second;
        tensor.chunks.push_back({rank_file_name(rank),
                                 is_first ? name : name + "@" + std::to_string(row_begin),
                                 row_begin, row_end, 0});
      }
    }
  }
  check_manifest(manifest, "checkpoint");
  return manifest;
}

// Writes this rank's file; returns the hash of each of its chunks, by name in the file.
std::string write_rank_file(const fs::path& folder, std::span<const ShardChunk> chunks,
                            const CheckpointManifest& plan, int rank) {
  const std::string file = rank_file_name(rank);
  std::vector<std::pair<const ShardChunk*, std::string>> mine;
  std::vector<SafetensorsSpec> specs;
  for (const ShardChunk& chunk : chunks) {
    if (is_padding(chunk)) {
      continue;
    }
    for (const ManifestChunk& planned : plan.tensors.at(chunk.name).chunks) {
      const bool is_this = planned.file == file && planned.row_begin == chunk.row_begin &&
                           planned.row_end == chunk.row_begin + local_rows(chunk);
      if (is_this) {
        mine.emplace_back(&chunk, planned.name);
        specs.push_back({planned.name, chunk.local.scalar_type(), chunk.local.sizes().vec()});
      }
    }
  }
  json hashes = json::object();
  if (mine.empty()) {
    return hashes.dump();
  }
  SafetensorsWriter writer(folder / file, specs, {{"format", "pt"}});
  for (const auto& [chunk, name] : mine) {
    const at::Tensor bytes = chunk->local.detach().to(at::kCPU).contiguous();
    hashes[name] = xxh3(bytes.const_data_ptr(), bytes.nbytes());
    writer.write(name, bytes);
  }
  writer.commit();
  return hashes.dump();
}

void fill_hashes(CheckpointManifest& manifest, const std::vector<std::string>& hashes) {
  std::map<std::string, json> by_file;
  for (int rank = 0; rank < static_cast<int>(hashes.size()); ++rank) {
    by_file[rank_file_name(rank)] = json::parse(hashes[rank]);
  }
  for (auto& [name, tensor] : manifest.tensors) {
    for (ManifestChunk& chunk : tensor.chunks) {
      chunk.xxh3 = by_file.at(chunk.file).at(chunk.name).get<uint64_t>();
    }
  }
}

// Opens each file of a checkpoint once and checks chunks against the manifest.
class ChunkReader {
 public:
  explicit ChunkReader(const fs::path& folder) : folder_(folder) {}

  // The chunk, its dtype and shape checked; nothing of the data is read.
  at::Tensor chunk(const std::string& tensor_name, const ManifestTensor& tensor,
                   const ManifestChunk& chunk) {
    const SafetensorsFile& file = open(chunk.file);
    std::vector<int64_t> expected = tensor.sizes;
    if (!expected.empty()) {
      expected[0] = chunk.row_end - chunk.row_begin;
    }
    if (!file.contains(chunk.name) || file.sizes(chunk.name) != expected ||
        safetensors_dtype_name(file.dtype(chunk.name)) != tensor.dtype) {
      throw std::runtime_error(file.path().string() + ": tensor '" + tensor_name +
                               "' is not in it with the dtype and shape of the manifest; the "
                               "checkpoint is damaged");
    }
    return file.tensor(chunk.name);
  }

  void verify(const std::string& tensor_name, const ManifestTensor& tensor,
              const ManifestChunk& planned) {
    if (!verified_.emplace(planned.file, planned.name).second) {
      return;
    }
    const at::Tensor data = chunk(tensor_name, tensor, planned);
    if (const uint64_t actual = xxh3(data.const_data_ptr(), data.nbytes());
        actual != planned.xxh3) {
      throw std::runtime_error((folder_ / planned.file).string() + ": tensor '" + tensor_name +
                               "': expected xxh3 " + xxh3_text(planned.xxh3) + ", got " +
                               xxh3_text(actual) + "; the checkpoint is damaged");
    }
  }

 private:
  const SafetensorsFile& open(const std::string& name) {
    const auto found = files_.find(name);
    return found != files_.end()
               ? found->second
               : files_.emplace(name, SafetensorsFile::open(folder_ / name)).first->second;
  }

  fs::path folder_;
  std::map<std::string, SafetensorsFile> files_;
  std::set<std::pair<std::string, std::string>> verified_;
};

// Rows both have: [begin, end), maybe empty.
std::pair<int64_t, int64_t> common_rows(const ShardChunk& destination, const ManifestChunk& chunk) {
  return {std::max(destination.row_begin, chunk.row_begin),
          std::min(destination.row_begin + local_rows(destination), chunk.row_end)};
}

void copy_rows(const ShardChunk& destination, const ManifestChunk& chunk, const at::Tensor& data) {
  const at::Tensor local = destination.local.detach();
  if (destination.global_sizes.empty()) {
    local.copy_(data);
    return;
  }
  const auto [begin, end] = common_rows(destination, chunk);
  local.narrow(0, begin - destination.row_begin, end - begin)
      .copy_(data.narrow(0, begin - chunk.row_begin, end - begin));
}

}  // namespace

void write_sharded_checkpoint(const fs::path& folder, int64_t step,
                              std::span<const ShardChunk> chunks, const std::string& state_json,
                              comm::Communicator& communicator) {
  const auto offers = on_all_ranks(communicator, [&] { return offer_json(chunks); });
  CheckpointManifest manifest = plan_checkpoint(offers, step);
  const auto hashes = on_all_ranks(
      communicator, [&] { return write_rank_file(folder, chunks, manifest, communicator.rank()); });
  on_all_ranks(communicator, [&] {
    if (communicator.rank() == 0) {
      fill_hashes(manifest, hashes);
      manifest.state_json = state_json;
      write_durable_file(folder / kManifestName, manifest_json(manifest));
    }
    return std::string();
  });
}

Checkpoint Checkpoint::open(const fs::path& folder) {
  const fs::path path = folder / kManifestName;
  Checkpoint checkpoint;
  checkpoint.folder_ = folder;
  checkpoint.manifest_ = parse_manifest(read_file(path), path.string());
  return checkpoint;
}

void Checkpoint::verify_structure() const {
  ChunkReader reader(folder_);
  for (const auto& [name, tensor] : manifest_.tensors) {
    for (const ManifestChunk& chunk : tensor.chunks) {
      reader.chunk(name, tensor, chunk);
    }
  }
}

void Checkpoint::verify() const {
  ChunkReader reader(folder_);
  for (const auto& [name, tensor] : manifest_.tensors) {
    for (const ManifestChunk& chunk : tensor.chunks) {
      reader.verify(name, tensor, chunk);
    }
  }
}

void Checkpoint::load(std::span<const ShardChunk> destinations) const {
  ChunkReader reader(folder_);
  const auto for_each_overlap = [&](const auto& visit) {
    for (const ShardChunk& destination : destinations) {
      const ManifestTensor& tensor = manifest_.tensors.at(destination.name);
      for (const ManifestChunk& chunk : tensor.chunks) {
        const auto [begin, end] = common_rows(destination, chunk);
        if (begin < end) {
          visit(destination, tensor, chunk);
        }
      }
    }
  };
  for (const ShardChunk& destination : destinations) {
    check_chunk(destination);
    const auto found = manifest_.tensors.find(destination.name);
    if (found == manifest_.tensors.end()) {
      throw std::runtime_error(folder_.string() + ": tensor '" + destination.name +
                               "' is not in this checkpoint; it is of another model or optimizer");
    }
    const ManifestTensor& tensor = found->second;
    const std::string dtype = safetensors_dtype_name(destination.local.scalar_type());
    if (tensor.dtype != dtype || tensor.sizes != destination.global_sizes) {
      throw std::runtime_error(c10::str(folder_.string(), ": tensor '", destination.name,
                                        "': expected ", dtype, " ",
                                        at::IntArrayRef(destination.global_sizes), ", got ",
                                        tensor.dtype, " ", at::IntArrayRef(tensor.sizes)));
    }
  }
  for_each_overlap([&](const auto& destination, const auto& tensor, const auto& chunk) {
    reader.verify(destination.name, tensor, chunk);
  });
  for_each_overlap([&](const auto& destination, const auto& tensor, const auto& chunk) {
    copy_rows(destination, chunk, reader.chunk(destination.name, tensor, chunk));
  });
}

}  // namespace narrowgauge::checkpoint

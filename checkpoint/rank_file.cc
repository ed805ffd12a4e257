#include "checkpoint/rank_file.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <utility>

#include "checkpoint/safetensors.h"
#include "checkpoint/safetensors_header.h"
#include "checkpoint/shard_plan.h"
#include "checkpoint/streamed_file.h"
#include "checkpoint/strict_json.h"
#include "checkpoint/xxh3.h"

namespace narrowgauge::checkpoint {
namespace {

using nlohmann::json;

// Hashed, and then copied while it is in the processor's cache; between pieces a write can be
// cancelled.
constexpr uint64_t kPieceBytes = uint64_t{256} << 10;

// The hash of what was written.
uint64_t write_rows(StreamedFile& file, const at::Tensor& rows, WriteProgress& progress) {
  const at::Tensor bytes = rows.detach().to(at::kCPU).contiguous();
  const auto* data = static_cast<const char*>(bytes.const_data_ptr());
  Xxh3 hash;
  for (uint64_t done = 0; done < bytes.nbytes(); done += kPieceBytes) {
    if (progress.is_cancelled) {
      throw std::runtime_error("the run ended while the checkpoint was written");
    }
    const uint64_t count = std::min<uint64_t>(kPieceBytes, bytes.nbytes() - done);
    hash.update(data + done, count);
    file.append(data + done, count);
    progress.bytes_done += count;
  }
  return hash.digest();
}

}  // namespace

std::string write_rank_file(const std::filesystem::path& path,
                            const std::vector<RankFileTensor>& tensors, WriteProgress& progress) {
  std::vector<std::pair<std::string, SafetensorsEntry>> entries;
  std::map<std::string, at::Tensor> rows;
  for (const RankFileTensor& tensor : tensors) {
    entries.push_back(
        {tensor.name,
         {safetensors_dtype_name(tensor.rows.scalar_type()), tensor.rows.sizes().vec(), 0, 0}});
    rows[tensor.name] = tensor.rows;
  }
  const uint64_t data_bytes = lay_out_tensors(entries);
  const std::string header = safetensors_header_bytes(entries, {{"format", "pt"}});
  StreamedFile file(path, header.size() + data_bytes);
  file.append(header.data(), header.size());
  json hashes = json::object();
  for (const auto& [name, entry] : entries) {
    hashes[name] = write_rows(file, rows.at(name), progress);
  }
  file.commit();
  return json{{"bytes", header.size() + data_bytes},
              {"header", xxh3(header.data(), header.size())},
              {"chunks", hashes}}
      .dump();
}

void add_to_manifest(CheckpointManifest& manifest, const std::vector<std::string>& results) {
  std::map<std::string, json> by_file;
  for (int rank = 0; rank < static_cast<int>(results.size()); ++rank) {
    if (!results[rank].empty()) {
      by_file[rank_file_name(rank)] = json::parse(results[rank]);
    }
  }
  for (auto& [name, file] : manifest.files) {
    file = {by_file.at(name).at("bytes").get<uint64_t>(),
            by_file.at(name).at("header").get<uint64_t>()};
  }
  for (auto& [name, tensor] : manifest.tensors) {
    for (ManifestChunk& chunk : tensor.chunks) {
      chunk.xxh3 = by_file.at(chunk.file).at("chunks").at(chunk.name).get<uint64_t>();
    }
  }
}

}  // namespace narrowgauge::checkpoint

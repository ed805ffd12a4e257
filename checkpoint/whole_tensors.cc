#include "checkpoint/whole_tensors.h"

#include <algorithm>
#include <stdexcept>
#include <utility>
#include <vector>

#include "checkpoint/durable_file.h"
#include "checkpoint/safetensors_header.h"

namespace narrowgauge::checkpoint {
namespace {

constexpr uint64_t kPieceBytes = uint64_t{4} << 20;

// The tensor's rows at `offset` of the file, chunk by chunk.
void copy_tensor(CheckpointReader& reader, const std::string& name, DurableFile& file,
                 uint64_t offset) {
  const ManifestTensor& tensor = reader.manifest().tensors.at(name);
  const uint64_t row_bytes = std::max<uint64_t>(size_bytes(tensor, 1), 1);
  const auto piece_rows = static_cast<int64_t>(std::max<uint64_t>(kPieceBytes / row_bytes, 1));
  std::vector<char> piece;
  for (const ManifestChunk& chunk : tensor.chunks) {
    reader.verify_chunk(name, tensor, chunk);
    for (int64_t begin = chunk.row_begin; begin < chunk.row_end; begin += piece_rows) {
      const int64_t end = std::min(begin + piece_rows, chunk.row_end);
      piece.resize(size_bytes(tensor, end - begin));
      reader.read_rows(name, tensor, chunk, begin, end, piece.data());
      file.write_at(offset + size_bytes(tensor, begin), piece.data(), piece.size());
    }
  }
}

}  // namespace

void write_whole_tensors(CheckpointReader& reader, const std::string& prefix,
                         const std::filesystem::path& path,
                         const CheckpointReader::Progress& progress) {
  std::vector<std::pair<std::string, SafetensorsEntry>> entries;
  for (const auto& [name, tensor] : reader.manifest().tensors) {
    if (name.starts_with(prefix) && name.size() > prefix.size()) {
      entries.push_back({name.substr(prefix.size()), {tensor.dtype, tensor.sizes, 0, 0}});
    }
  }
  if (entries.empty()) {
    throw std::runtime_error(reader.folder().string() +
                             ": no tensor has a name that begins with '" + prefix + "'");
  }
  const uint64_t data_bytes = lay_out_tensors(entries);
  const std::string header =
      safetensors_header_bytes(entries, {{"format", "pt"},
                                         {"step", std::to_string(reader.manifest().step)},
                                         {"state", reader.manifest().state_json}});
  DurableFile file(path);
  file.reserve(header.size() + data_bytes);
  file.write_at(0, header.data(), header.size());
  for (const auto& [name, entry] : entries) {
    copy_tensor(reader, prefix + name, file, header.size() + entry.begin);
    if (progress) {
      progress(entry.end);
    }
  }
  file.commit();
}

}  // namespace narrowgauge::checkpoint

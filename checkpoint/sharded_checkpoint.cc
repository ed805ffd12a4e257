#include "checkpoint/sharded_checkpoint.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "checkpoint/safetensors.h"

namespace narrowgauge::checkpoint {
namespace {

// Rows both have: [begin, end), maybe empty.
std::pair<int64_t, int64_t> common_rows(const ShardChunk& destination, const ManifestChunk& chunk) {
  return {std::max(destination.row_begin, chunk.row_begin),
          std::min(destination.row_begin + num_local_rows(destination), chunk.row_end)};
}

// Rows [begin, end) of the whole tensor into their place in the destination.
void copy_rows(CheckpointReader& reader, const ShardChunk& destination,
               const ManifestTensor& tensor, const ManifestChunk& chunk, int64_t begin,
               int64_t end) {
  const at::Tensor local = destination.local.detach();
  const at::Tensor place = destination.global_sizes.empty()
                               ? local
                               : local.narrow(0, begin - destination.row_begin, end - begin);
  const bool is_direct = place.is_cpu() && place.is_contiguous();
  const at::Tensor rows =
      is_direct ? place : at::empty(place.sizes(), place.options().device(at::kCPU));
  reader.read_rows(destination.name, tensor, chunk, begin, end, rows.mutable_data_ptr());
  if (!is_direct) {
    place.copy_(rows);
  }
}

}  // namespace

Checkpoint::Checkpoint(CheckpointReader reader)
    : reader_(std::make_shared<CheckpointReader>(std::move(reader))) {}

Checkpoint Checkpoint::open(const std::filesystem::path& folder) {
  return Checkpoint(CheckpointReader::open(folder));
}

void Checkpoint::load(std::span<const ShardChunk> destinations) const {
  const auto& tensors = manifest().tensors;
  const auto for_each_overlap = [&](const auto& visit) {
    for (const ShardChunk& destination : destinations) {
      const ManifestTensor& tensor = tensors.at(destination.name);
      for (const ManifestChunk& chunk : tensor.chunks) {
        const auto [begin, end] = common_rows(destination, chunk);
        if (begin < end) {
          visit(destination, tensor, chunk, begin, end);
        }
      }
    }
  };
  for (const ShardChunk& destination : destinations) {
    check_chunk(destination);
    const auto found = tensors.find(destination.name);
    if (found == tensors.end()) {
      throw std::runtime_error(folder().string() + ": tensor '" + destination.name +
                               "' is not in this checkpoint; it is of another model or optimizer");
    }
    const ManifestTensor& tensor = found->second;
    const std::string dtype = safetensors_dtype_name(destination.local.scalar_type());
    if (tensor.dtype != dtype || tensor.sizes != destination.global_sizes) {
      throw std::runtime_error(c10::str(folder().string(), ": tensor '", destination.name,
                                        "': expected ", dtype, " ",
                                        at::IntArrayRef(destination.global_sizes), ", got ",
                                        tensor.dtype, " ", at::IntArrayRef(tensor.sizes)));
    }
  }
  for_each_overlap([&](const auto& destination, const auto& tensor, const auto& chunk, auto, auto) {
    reader_->verify_chunk(destination.name, tensor, chunk);
  });
  for_each_overlap(
      [&](const auto& destination, const auto& tensor, const auto& chunk, int64_t begin,
          int64_t end) { copy_rows(*reader_, destination, tensor, chunk, begin, end); });
}

}  // namespace narrowgauge::checkpoint

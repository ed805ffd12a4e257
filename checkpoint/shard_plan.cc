#include "checkpoint/shard_plan.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "checkpoint/rank_agreement.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/strict_json.h"

namespace narrowgauge::checkpoint {
namespace {

using nlohmann::json;

// A chunk without rows says nothing, except of a tensor that has none.
bool is_padding(const ShardChunk& chunk) {
  return num_local_rows(chunk) == 0 && num_rows(chunk.global_sizes) > 0;
}

// What this rank could write: [[name, dtype, global shape, row_begin, row_end], ...].
std::string offer_json(std::span<const ShardChunk> chunks) {
  json offer = json::array();
  for (const ShardChunk& chunk : chunks) {
    check_chunk(chunk);
    if (!is_padding(chunk)) {
      offer.push_back({chunk.name, safetensors_dtype_name(chunk.local.scalar_type()),
                       chunk.global_sizes, chunk.row_begin,
                       chunk.row_begin + num_local_rows(chunk)});
    }
  }
  return offer.dump();
}

struct RowRange {
  std::string name;
  int64_t begin = 0;
  int64_t end = 0;
  auto operator<=>(const RowRange&) const = default;
};

// Who holds each range of rows, lowest rank first. Fills in the manifest's tensors, chunks aside.
std::map<RowRange, std::vector<int>> holders_of(const std::vector<std::string>& offers,
                                                CheckpointManifest& manifest) {
  std::map<RowRange, std::vector<int>> holders;
  for (int rank = 0; rank < static_cast<int>(offers.size()); ++rank) {
    for (const json& offer : json::parse(offers[rank])) {
      const auto [name, dtype, sizes, row_begin, row_end] =
          offer.get<std::tuple<std::string, std::string, std::vector<int64_t>, int64_t, int64_t>>();
      const ManifestTensor& tensor =
          manifest.tensors.try_emplace(name, ManifestTensor{dtype, sizes, {}}).first->second;
      TORCH_CHECK(tensor.dtype == dtype && tensor.sizes == sizes, "checkpoint: tensor '", name,
                  "' is ", tensor.dtype, " ", at::IntArrayRef(tensor.sizes), " on a lower rank, ",
                  dtype, " ", at::IntArrayRef(sizes), " on rank ", rank);
      std::vector<int>& ranks = holders[{name, row_begin, row_end}];
      if (ranks.empty() || ranks.back() != rank) {
        ranks.push_back(rank);
      }
    }
  }
  return holders;
}

// The rank that writes each range: its only holder, else the holder with the least so far, large
// ranges first.
std::map<RowRange, int> choose_writers(const std::map<RowRange, std::vector<int>>& holders,
                                       const CheckpointManifest& manifest, size_t world_size) {
  std::map<RowRange, int> writers;
  std::vector<uint64_t> load(world_size, 0);
  std::vector<std::pair<uint64_t, RowRange>> shared;
  for (const auto& [range, ranks] : holders) {
    const uint64_t bytes = size_bytes(manifest.tensors.at(range.name), range.end - range.begin);
    if (ranks.size() == 1) {
      writers[range] = ranks.front();
      load[ranks.front()] += bytes;
    } else {
      shared.emplace_back(bytes, range);
    }
  }
  std::sort(shared.begin(), shared.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  });
  for (const auto& [bytes, range] : shared) {
    const std::vector<int>& ranks = holders.at(range);
    const int least = *std::min_element(ranks.begin(), ranks.end(),
                                        [&](int a, int b) { return load[a] < load[b]; });
    writers[range] = least;
    load[least] += bytes;
  }
  return writers;
}

CheckpointManifest plan_from(const std::vector<std::string>& offers, int64_t step) {
  CheckpointManifest manifest;
  manifest.step = step;
  manifest.world_size = static_cast<int64_t>(offers.size());
  const auto holders = holders_of(offers, manifest);
  std::set<std::pair<int, std::string>> names;  // per file
  for (const auto& [range, rank] : choose_writers(holders, manifest, offers.size())) {
    const bool is_first = names.emplace(rank, range.name).second;
    const std::string name = is_first ? range.name : range.name + "@" + std::to_string(range.begin);
    manifest.tensors.at(range.name)
        .chunks.push_back({rank_file_name(rank), name, range.begin, range.end, 0});
    manifest.files[rank_file_name(rank)] = {};
  }
  check_manifest(manifest, "checkpoint");
  return manifest;
}

}  // namespace

int64_t num_local_rows(const ShardChunk& chunk) {
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
  const int64_t row_end = chunk.row_begin + num_local_rows(chunk);
  TORCH_CHECK(chunk.row_begin >= 0 && row_end <= num_rows(chunk.global_sizes),
              "checkpoint: tensor '", chunk.name, "': expected rows within [0, ",
              num_rows(chunk.global_sizes), "], got [", chunk.row_begin, ", ", row_end, ")");
}

CheckpointManifest plan_shards(std::span<const ShardChunk> chunks, int64_t step,
                               comm::Communicator& communicator) {
  return plan_from(on_all_ranks(communicator, [&] { return offer_json(chunks); }), step);
}

const CheckpointManifest& ShardPlanner::plan(std::span<const ShardChunk> chunks, int64_t step,
                                             comm::Communicator& communicator) {
  std::string offer;
  const std::vector<std::string> has_changed = on_all_ranks(communicator, [&] {
    offer = offer_json(chunks);
    return std::string(offer == offer_ ? "" : "changed");
  });
  if (std::any_of(has_changed.begin(), has_changed.end(),
                  [](const std::string& text) { return !text.empty(); })) {
    plan_ = plan_shards(chunks, step, communicator);
    offer_ = offer;
  }
  plan_.step = step;
  return plan_;
}

std::vector<PlannedChunk> planned_for(int rank, std::span<const ShardChunk> chunks,
                                      const CheckpointManifest& plan) {
  const std::string file = rank_file_name(rank);
  std::vector<PlannedChunk> mine;
  std::set<std::string> taken;  // by name in the file: a rank may hold the same rows twice
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (is_padding(chunks[i])) {
      continue;
    }
    for (const ManifestChunk& planned : plan.tensors.at(chunks[i].name).chunks) {
      const bool is_this = planned.file == file && planned.row_begin == chunks[i].row_begin &&
                           planned.row_end == chunks[i].row_begin + num_local_rows(chunks[i]);
      if (is_this && taken.insert(planned.name).second) {
        mine.push_back({i, planned.name});
      }
    }
  }
  return mine;
}

std::string rank_file_name(int rank) {
  char name[64];
  std::snprintf(name, sizeof(name), "rank-%05d.safetensors", rank);
  return name;
}

}  // namespace narrowgauge::checkpoint
